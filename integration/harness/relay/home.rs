//! The directories of a relay, which outlive its process: killed and started again on the same ones, it is the same relay.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use tempfile::TempDir;

use super::binary;
use crate::harness::netns::Host;

/// How long a command of the relay's may take, in seconds; one that is killed for it has the exit code 137.
const PATIENCE: &str = "60";

/// Configuration, `run/`, `state/` and `etc/` of one relay. Clones are the same; the last takes them along.
#[derive(Clone, Debug)]
pub struct Home {
    folder: Arc<Folder>,
}

#[derive(Debug)]
struct Folder {
    path: TempDir,
}

/// What a command said, and how it ended.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its exit code, or 128 and the signal that killed it.
    pub code: i32,
    /// What it wrote to stdout.
    pub out: String,
    /// What it wrote to stderr.
    pub err: String,
}

impl Said {
    /// Its standard output, if it succeeded.
    ///
    /// # Panics
    /// When it did not, with what it said.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }
}

impl Home {
    /// An empty home. Under /run, which is ours alone and goes with our namespaces.
    pub fn new() -> Self {
        let path = TempDir::new_in("/run").expect("/run is ours");
        let home = Self {
            folder: Arc::new(Folder { path }),
        };
        // Open to whomever a wrapper turns the relay into.
        let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o777));
        open(home.path()).expect("/run is ours");
        for folder in [home.run(), home.state()] {
            fs::create_dir(&folder).expect("/run is ours");
            open(&folder).expect("/run is ours");
        }
        fs::create_dir(home.path().join("etc")).expect("/run is ours");
        home
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path.path()
    }

    /// What the relay's process is told is its `run_dir`.
    pub fn run(&self) -> PathBuf {
        self.path().join("run")
    }

    /// What the relay's process is told is its `state_dir`.
    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// The ledger's file.
    pub fn ledger(&self) -> PathBuf {
        self.state().join("ledger.db")
    }

    /// Its configuration's file.
    pub fn config(&self) -> PathBuf {
        self.path().join("tollgate.toml")
    }

    /// Fills in what stands for the home and for its configuration.
    pub fn fill(&self, text: &str) -> String {
        let path = self.path().to_str().expect("/run is text");
        let config = self.config();
        let config = config.to_str().expect("/run is text");
        text.replace("@CONFIG@", config).replace("@DIR@", path)
    }

    /// The configuration, written anew; `@DIR@` is filled in.
    pub fn configure(&self, text: &str) {
        fs::write(self.config(), self.fill(text)).expect("/run is ours");
    }

    /// Runs a command of the binary on a host, with the environment that the relay has, and waits for its end. `@DIR@` and `@CONFIG@` are filled in.
    #[track_caller]
    pub fn tollgate(&self, host: &Host, arguments: &[&str]) -> Said {
        self.tollgate_through(host, &[], arguments)
    }

    /// As [`tollgate`](Self::tollgate), through a program that becomes it: `["setpriv", "--reuid=65534", …]`.
    #[track_caller]
    pub fn tollgate_through(&self, host: &Host, wrapper: &[&str], arguments: &[&str]) -> Said {
        let mut command = host.command("timeout");
        command.args(["--signal=KILL", PATIENCE]).args(wrapper);
        command.arg(binary());
        command.args(arguments.iter().map(|text| self.fill(text)));
        self.environment(&mut command);
        let output = command.output();
        let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let by_signal = || 128 + output.status.signal().unwrap_or(0);
        Said {
            code: output.status.code().unwrap_or_else(by_signal),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Puts a file system of its own, of memory and with these options (`"size=1m"`), in the place of one of its directories.
    ///
    /// # Panics
    /// When mount(8) fails, with what it said.
    #[track_caller]
    pub fn mount(&self, folder: &str, options: &str) -> Mounted {
        let at = self.path().join(folder);
        let mounted = Mounted { at };
        mounted.mount(&[
            "-t",
            "tmpfs",
            "-o",
            &format!("{options},mode=0777"),
            "tmpfs",
        ]);
        mounted
    }

    pub(super) fn environment(&self, command: &mut Command) {
        command
            .env("RUNTIME_DIRECTORY", self.run())
            .env("STATE_DIRECTORY", self.state());
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

/// A small file system in a home. It goes when it is dropped, as soon as nobody has anything open there.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
}

impl Mounted {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Mounts it anew with these options: `"ro"` where nobody writes there, `"rw"`, `"size=8m"`.
    #[track_caller]
    pub fn again(&self, options: &str) {
        self.mount(&["-o", &format!("remount,{options}")]);
    }

    /// Takes all room that is left there.
    ///
    /// # Panics
    /// When it cannot be filled.
    #[track_caller]
    pub fn fill(&self) {
        let path = self.at.join("filler");
        let mut file = fs::OpenOptions::new();
        let mut file = file
            .create(true)
            .append(true)
            .open(&path)
            .expect("it is ours");
        let block = vec![0; 4096];
        loop {
            match io::Write::write(&mut file, &block) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }

    /// Gives back what [`fill`](Self::fill) took.
    pub fn empty(&self) {
        fs::remove_file(self.at.join("filler")).expect("it was filled");
    }

    #[track_caller]
    fn mount(&self, arguments: &[&str]) {
        let mut command = Command::new("mount");
        let output = command.args(arguments).arg(&self.at).output();
        let output = output.expect("mount(8) was there at the start");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}
