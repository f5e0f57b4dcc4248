//! Reads a client's first bytes until they tell what they can tell.

use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::{Look, Peek, Seen};
use crate::account::PeekOutcome;
use crate::reactor::Watched;

/// Bytes read at a time, at least: most hellos and heads are shorter, and what comes behind them may as well come along.
const READ_AHEAD: usize = 2048;

/// Reads behind what `bytes` holds of the stream, `most` in all and until `deadline`; no more once it is decided. Everything that was read is
/// in `bytes` then, for whoever passes it on. `on_first_byte` is called when there was none before.
pub async fn peek(
    client: &Watched,
    bytes: &mut Vec<u8>,
    most: usize,
    deadline: Instant,
    on_first_byte: impl FnOnce(),
) -> Seen {
    let mut peek = Peek::new(most);
    let mut on_first_byte = Some(on_first_byte).filter(|_| bytes.is_empty());
    loop {
        if let Look::Over(seen) = peek.look(bytes) {
            return seen;
        }
        let announced = client.announced(EventFlags::IN);
        let Some(announced) = client.reactor().timeout_at(deadline, announced).await else {
            return Seen::nameless(PeekOutcome::Timeout);
        };
        match client.take::<READ_AHEAD>(announced, bytes, most - bytes.len()) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(0) | Err(_) => return Seen::nameless(PeekOutcome::ClosedEarly),
            Ok(_) => {
                if let Some(on_first_byte) = on_first_byte.take() {
                    on_first_byte();
                }
            }
        }
    }
}
