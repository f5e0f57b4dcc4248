//! Whether every worker turns: asked by the control thread, answered by each worker from within its own turns, and only where a watchdog wants to
//! know.
//!
//! A question wakes the worker as any other message would, and its tasks answer it: so an answer says that the worker waits, wakes and runs its
//! tasks as it should. A worker that has ended is asked no more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use crate::systemd;

/// How many questions are asked in the time after which systemd takes us for dead: a worker that is merely busy may miss one.
const QUESTIONS: u32 = 4;

/// Whatever systemd wants: nobody is asked more often.
const SHORTEST: Duration = Duration::from_millis(10);

/// The answer of a worker that has ended: it will be right for ever.
const ENDED: u64 = u64::MAX;

/// The control thread's side.
#[derive(Debug)]
pub struct Pulse {
    question: watch::Sender<u64>,
    answers: Arc<[AtomicU64]>,
}

/// A worker's side. Dropped with the worker.
#[derive(Debug)]
pub struct Heart {
    question: watch::Receiver<u64>,
    answers: Arc<[AtomicU64]>,
    worker: usize,
}

impl Pulse {
    /// For so many workers, with what each of them answers by.
    #[must_use]
    pub fn new(workers: usize) -> (Self, Vec<Heart>) {
        let (question, asked) = watch::channel(0);
        let answers: Arc<[AtomicU64]> = (0..workers).map(|_| AtomicU64::new(0)).collect();
        let hearts = (0..workers).map(|worker| Heart {
            question: asked.clone(),
            answers: answers.clone(),
            worker,
        });
        let hearts = hearts.collect();
        (Self { question, answers }, hearts)
    }

    /// Those that have not answered the last question; then asks the next.
    fn missing(&self) -> Vec<usize> {
        let asked = *self.question.borrow();
        let late = |worker: &usize| self.answers[*worker].load(Relaxed) < asked;
        let missing: Vec<usize> = (0..self.answers.len()).filter(late).collect();
        if missing.is_empty() {
            self.question.send_replace(asked + 1);
        }
        missing
    }

    /// Tells systemd, for ever, that every worker turns, as long as it is so. `within`: how soon systemd has to hear of it.
    pub async fn tell(self, within: Duration) {
        let mut beats = interval((within / QUESTIONS).max(SHORTEST));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut known = Vec::new();
        loop {
            beats.tick().await;
            let missing = self.missing();
            if missing.is_empty() {
                systemd::alive();
            }
            if missing != known {
                match missing.is_empty() {
                    true => info!("every worker turns again"),
                    false => error!(
                        workers = ?missing,
                        watchdog = ?within,
                        "these workers do not turn; systemd ends the process unless they do soon"
                    ),
                }
                known = missing;
            }
        }
    }
}

impl Heart {
    /// Answers, for ever.
    pub async fn beat(mut self) {
        // Fails only when the control thread is gone: then nobody asks.
        while self.question.changed().await.is_ok() {
            let asked = *self.question.borrow_and_update();
            self.answers[self.worker].store(asked, Relaxed);
        }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.answers[self.worker].store(ENDED, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_worker_that_does_not_turn_is_missed_and_one_that_has_ended_is_not() {
        let (pulse, hearts) = Pulse::new(3);
        let [first, second, third] = hearts.try_into().unwrap();
        assert_eq!(pulse.missing(), [0_usize; 0], "nothing was asked yet");
        let turning = tokio::spawn(first.beat());
        drop(third);
        tokio::task::yield_now().await;
        assert_eq!(pulse.missing(), [1]);
        assert_eq!(pulse.missing(), [1], "and no further question is asked");
        let late = tokio::spawn(second.beat());
        tokio::task::yield_now().await;
        assert_eq!(pulse.missing(), [0_usize; 0]);
        tokio::task::yield_now().await;
        assert_eq!(pulse.missing(), [0_usize; 0]);
        turning.abort();
        late.abort();
    }
}
