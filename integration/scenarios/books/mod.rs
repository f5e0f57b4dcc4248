//! Books that can be trusted: counters, ledger, audit log and reports beside what clients and servers counted themselves.

use libtest_mimic::Trial;

mod counted;
mod faults;
mod hostile;
mod killed;
mod read;
mod recorded;
mod sessions;
mod t5;
mod tamper;
mod world;

pub(crate) fn tests() -> Vec<Trial> {
    [
        t5::tests(),
        counted::tests(),
        killed::tests(),
        recorded::tests(),
        tamper::tests(),
        hostile::tests(),
        faults::tests(),
        read::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
