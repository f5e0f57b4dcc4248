//! The thread that asks the relay.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::super::Error;
use super::super::relay::Relay;
use super::target;
use crate::admin::{Asked, Live};

/// What became of a question.
pub(super) type Answer = Result<Live, String>;

/// One question at a time.
#[derive(Debug)]
pub(super) struct Asking {
    questions: Sender<Asked>,
    answers: Receiver<Answer>,
}

impl Asking {
    /// The thread ends when this is dropped and the relay has answered, or with the process.
    pub(super) fn begin(relay: Relay) -> Self {
        let (questions, asked) = channel::<Asked>();
        let (answer, answers) = channel();
        thread::spawn(move || {
            while let Ok(asked) = asked.recv() {
                let told = relay.json("GET", &target(&asked)).map_err(why);
                if answer.send(told).is_err() {
                    return;
                }
            }
        });
        Self { questions, answers }
    }

    /// Asks; whoever asks waits for the answer before the next question.
    pub(super) fn ask(&self, asked: Asked) {
        // Where the thread has gone there is never an answer, and the screen says for how long.
        let _ = self.questions.send(asked);
    }

    pub(super) fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }
}

fn why(error: Error) -> String {
    match error {
        Error::Books { what, .. } => what,
        other => format!("{other:?}"),
    }
}
