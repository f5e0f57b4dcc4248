//! What the books cost: the relay's processor time with and without them ([`accounting`]), and what a request feels of scrapes, reports and bookings
//! ([`beside`]).
//!
//! Both in rounds of their own, and in a report of their own.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    lab::World,
    peers::Running,
    processor::Cores,
    settings::Room,
    variant::{Kind, Role, Tuning, Variant},
};

pub(crate) mod accounting;
pub(crate) mod beside;
mod report;

pub(crate) use report::Report;

/// Where cargo lets a benchmark keep what may go at any time: on a disk, as a ledger is.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// A tollgate that keeps no books: `$TOLLGATE_WITHOUT`, or one that is built now, in a folder of its own. Takes minutes the first time.
///
/// # Errors
/// What cargo has to say.
pub(crate) fn without_books() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("TOLLGATE_WITHOUT").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let folder = Path::new(SCRATCH).join("no-accounting");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    // There is no network where we are, and nothing to get: this program is built of the same.
    build.args(["build", "--locked", "--offline", "--quiet", "--release"]);
    build.args(["--bin", "tollgate", "--features", "no-accounting"]);
    build.arg("--target-dir").arg(&folder);
    let status = build
        .status()
        .map_err(|error| format!("cargo build: {error}"))?;
    match status.success() {
        true => Ok(folder.join("release/tollgate")),
        false => Err(format!("{build:?}: {status}")),
    }
}

/// An empty folder on a disk.
pub(crate) fn folder(name: &str) -> io::Result<PathBuf> {
    let folder = Path::new(SCRATCH).join("books").join(name);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(&folder)?,
    }
    Ok(folder)
}

/// A relay of ours, with the state of its books in a folder on a disk.
pub(crate) fn relay(
    world: &World,
    cores: &Cores,
    number: usize,
    binary: &Path,
    mut tuning: Tuning,
    state: &Path,
) -> Result<Running, String> {
    tuning.top = format!("state_dir = \"{}\"\n{}", state.display(), tuning.top);
    let variant = Variant {
        role: Role::Ours,
        name: "tollgate".to_owned(),
        version: String::new(),
        settings: String::new(),
        kind: Kind::Tollgate(binary.to_owned(), tuning),
    };
    variant.start(number, world, cores, Room::Usual)
}
