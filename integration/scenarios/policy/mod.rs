//! O7. What endpoints, listeners and the relay may have: whoever is beyond a limit is turned away before anything of it goes upstream, and nobody
//! else notices.

use libtest_mimic::Trial;

mod admitted;
mod noisy;
mod pacing;
mod reloaded;
mod waiting;
mod world;

pub(crate) fn tests() -> Vec<Trial> {
    [
        admitted::tests(),
        waiting::tests(),
        reloaded::tests(),
        pacing::tests(),
        noisy::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
