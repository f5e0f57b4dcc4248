//! Reload: one configuration after another is put into force under a relay that is busy, and nobody who is there notices.

use libtest_mimic::Trial;

mod counted;
mod file;
mod kinds;
mod listeners;
mod load;
mod many;
mod often;
mod policy;
mod upstreams;
mod visitors;
mod world;

pub(crate) fn tests() -> Vec<Trial> {
    [
        load::tests(),
        file::tests(),
        listeners::tests(),
        upstreams::tests(),
        policy::tests(),
        counted::tests(),
        often::tests(),
        many::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
