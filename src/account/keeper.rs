//! What is done for the books now and then, on the control thread: saying that the process lives, letting go of whom nobody needs, and telling when
//! there is no room for whoever is new.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use super::books::Books;
use crate::sys::clock::monotonic_ms;

/// How often the process says that it lives. What a killed one had open is closed at that time.
const BEAT: Duration = Duration::from_millis(500);

/// Accounts are looked through every so often at most.
const LOOK: Duration = Duration::from_secs(15);

/// Keeps the books, for ever. Accounts without a session leave memory after `idle_after`, or soon thereafter.
pub async fn keep(books: Arc<Books>, idle_after: Duration) {
    let mut beats = interval(BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let look_every = (idle_after / 4).clamp(BEAT, LOOK);
    let mut look_in = look_every;
    let mut overflowed = 0;
    loop {
        beats.tick().await;
        let now = monotonic_ms();
        books.beat(now);
        look_in = look_in.saturating_sub(BEAT);
        if look_in.is_zero() {
            look_in = look_every;
            let gone = books.let_go(idle_after, now);
            if gone > 0 {
                debug!(gone, "accounts without a session left memory");
            }
            let all = books.overflowed();
            if all > overflowed {
                // Once in a look at most, however many come.
                warn!(
                    connections = all - overflowed,
                    "accounts.max is reached: connections of further endpoints are booked to \"overflow\""
                );
                overflowed = all;
            }
        }
    }
}
