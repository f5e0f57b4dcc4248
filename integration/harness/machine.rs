//! A machine within this one: everything that is installed here, whatever is changed stays in memory, and a systemd of its own that is booted in
//! namespaces. What is tested on it is the unit and the package themselves, under the service manager that they are for.
//!
//! It needs root of this machine and an overlay file system; [`possible`] says what is missing.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::BOUND;

/// Between two looks at what has no event to wait for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const UNITS: [&str; 2] = ["usr/lib/systemd/system", "etc/systemd/system"];
/// What units order themselves by, without what would pull in the rest of this machine: its own systemd-sysctl would set the kernel's variables.
const TARGETS: [&str; 12] = [
    "basic",
    "local-fs",
    "multi-user",
    "network",
    "network-online",
    "paths",
    "shutdown",
    "slices",
    "sockets",
    "sysinit",
    "timers",
    "umount",
];

/// Joins the control groups that it is given, and becomes unshare(1) in them, so that whatever systemd makes there can be taken away again.
const OUTSIDE: &str = r#"
root=$1; shift
for group; do echo $$ >"$group/cgroup.procs" 2>/dev/null || :; done
exec unshare --pid --fork --kill-child --mount --net --uts --ipc --cgroup -- sh -euc "$INSIDE" sh "$root"
"#;
/// Becomes systemd, with the machine's root as the only one.
const INSIDE: &str = r#"
cd "$1"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mkdir run/lock mnt 2>/dev/null || :
touch run/console
[ ! -e dev/console ] || mount --bind run/console dev/console
ip link set lo up
pivot_root . mnt
umount --lazy /mnt
exec env -i container=tollgate PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=multi-user.target \
    --show-status=no --log-target=console --default-standard-output=null
"#;

/// Why there can be no such machine here, if there cannot.
pub fn possible() -> Result<(), String> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if !map.split_whitespace().eq(["0", "0", "4294967295"]) {
        return Err("only root of the machine can boot systemd in namespaces".to_owned());
    }
    if !Path::new("/lib/systemd/systemd").exists() {
        return Err("there is no systemd here".to_owned());
    }
    Ok(())
}

/// See the module. It goes, with all that runs on it, when it is dropped.
#[derive(Debug)]
pub struct Machine {
    folder: TempDir,
    booted: Option<Booted>,
}

#[derive(Debug)]
struct Booted {
    unshare: Child,
    /// systemd's process id, as we see it.
    first: u32,
    groups: Vec<PathBuf>,
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; -1 for a signal.
    pub code: i32,
    /// Standard output and standard error, one behind the other.
    pub text: String,
}

impl Machine {
    /// A copy of this machine that does not run yet.
    ///
    /// # Panics
    /// When it cannot be mounted, with what mount(8) said.
    #[track_caller]
    pub fn new() -> Self {
        let folder = TempDir::new_in("/run").expect("/run is ours");
        let machine = Self {
            folder,
            booted: None,
        };
        let path = machine.folder.path().to_str().expect("/run is text");
        for name in ["root", "changes", "work"] {
            fs::create_dir(format!("{path}/{name}")).expect("/run is ours");
        }
        let options = format!("lowerdir=/,upperdir={path}/changes,workdir={path}/work");
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]);
        let said = say(mount.arg(machine.root()));
        assert_eq!(said.code, 0, "{}", said.text);
        machine
    }

    /// Where its root is, as we see it.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Where a path of its is, as we see it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// Where a path of its is, as its processes see it: /run and what else is mounted since it was booted included.
    fn within(&self, path: &str) -> PathBuf {
        match &self.booted {
            Some(booted) => PathBuf::from(format!("/proc/{}/root{path}", booted.first)),
            None => self.path(path),
        }
    }

    /// Copies a file of this machine to it.
    #[track_caller]
    pub fn copy(&self, from: &Path, path: &str) {
        let path = self.within(path);
        fs::copy(from, &path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Writes a file on it.
    #[track_caller]
    pub fn write(&self, path: &str, text: &str) {
        let path = self.within(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("it is ours");
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// What is in a file of it; nothing, where there is none.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.within(path)).unwrap_or_default()
    }

    /// Every path that is not as it is on this machine: made, changed, or taken away.
    pub fn changes(&self) -> Vec<String> {
        let changes = self.folder.path().join("changes");
        let (mut found, mut folders) = (Vec::new(), vec![changes.clone()]);
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).expect("it is ours");
            for entry in entries.map(|entry| entry.expect("it is ours")) {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path.clone());
                }
                let path = path.strip_prefix(&changes).expect("it is in there");
                found.push(format!("/{}", path.display()));
            }
        }
        found.sort();
        found
    }

    /// A command that will run on it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = match &self.booted {
            None => {
                let mut command = Command::new("chroot");
                command.arg(self.root());
                command
            }
            Some(booted) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--target={}", booted.first)).args([
                    "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--",
                ]);
                command
            }
        };
        command
            .arg(program)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        command
    }

    /// Runs a command on it, words separated by blanks, and waits for its end.
    #[track_caller]
    pub fn run(&self, words: &str) -> Said {
        let mut words = words.split(' ');
        let program = words.next().expect("a command has a name");
        say(self.command(program).args(words))
    }

    /// As [`run`](Self::run), for what must succeed; what it said.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn must(&self, words: &str) -> String {
        let said = self.run(words);
        assert_eq!(said.code, 0, "{words}: {}\n{}", said.text, self.console());
        said.text
    }

    /// A property of a unit as systemd has it.
    #[track_caller]
    pub fn property(&self, unit: &str, name: &str) -> String {
        let text = self.must(&format!("systemctl show --value -p {name} {unit}"));
        text.trim_end().to_owned()
    }

    /// Waits until a property of a unit is `wanted`.
    ///
    /// # Panics
    /// When it takes too long, with what systemd knows of the unit.
    #[track_caller]
    pub fn wait_property(&self, unit: &str, name: &str, wanted: &str) {
        let deadline = Instant::now() + BOUND;
        while self.property(unit, name) != wanted {
            if Instant::now() > deadline {
                let status = self.run(&format!("systemctl status --no-pager {unit}"));
                panic!(
                    "waited for {name}={wanted} of {unit}:\n{}\n{}",
                    status.text,
                    self.console()
                );
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// What systemd wrote to its console.
    pub fn console(&self) -> String {
        self.read("/run/console")
    }

    /// Boots it, with no unit but those whose names begin with `tollgate`.
    ///
    /// # Panics
    /// When systemd is not up in time.
    #[track_caller]
    pub fn boot(&mut self) {
        for folder in UNITS {
            for entry in fs::read_dir(self.path(folder)).expect("systemd is installed") {
                let entry = entry.expect("it is ours");
                if entry.file_name().to_string_lossy().starts_with("tollgate") {
                    continue;
                }
                let _ = fs::remove_dir_all(entry.path());
                let _ = fs::remove_file(entry.path());
            }
        }
        for name in TARGETS {
            self.write(
                &format!("{}/{name}.target", UNITS[0]),
                "[Unit]\nDefaultDependencies=no\n",
            );
        }
        symlink(
            "multi-user.target",
            self.path(UNITS[0]).join("default.target"),
        )
        .expect("it is ours");
        let groups = control_groups();
        let mut command = Command::new("sh");
        let command = command
            .args(["-c", OUTSIDE, "sh"])
            .arg(self.root())
            .args(&groups);
        let command = command.env("INSIDE", INSIDE).stdin(Stdio::null());
        let unshare = command.spawn().expect("there is a shell");
        let mut booted = Booted {
            unshare,
            first: 0,
            groups,
        };
        let outside = booted.unshare.id();
        let deadline = Instant::now() + BOUND;
        loop {
            let children = format!("/proc/{outside}/task/{outside}/children");
            let children = fs::read_to_string(children).unwrap_or_default();
            booted.first = children.trim().parse().unwrap_or(0);
            let name = fs::read_to_string(format!("/proc/{}/comm", booted.first));
            if booted.first != 0 && name.is_ok_and(|name| name == "systemd\n") {
                break;
            }
            assert!(
                Instant::now() < deadline && matches!(booted.unshare.try_wait(), Ok(None)),
                "systemd was not started"
            );
            thread::sleep(LOOK_AGAIN);
        }
        self.booted = Some(booted);
        loop {
            let said = self.run("systemctl is-active multi-user.target");
            if said.code == 0 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "systemd does not come up: {}\n{}",
                said.text,
                self.console()
            );
            thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut booted) = self.booted.take() {
            let _ = booted.unshare.kill();
            let _ = booted.unshare.wait();
            for group in &booted.groups {
                take_away(group);
            }
        }
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.root())
            .status();
    }
}

#[track_caller]
fn say(command: &mut Command) -> Said {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said {
        code: output.status.code().unwrap_or(-1),
        text: text(&output.stdout) + &text(&output.stderr),
    }
}

/// A group of its own in each hierarchy, below ours: cgroups of version 1, 2, or both.
fn control_groups() -> Vec<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let lines = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let groups = lines.filter_map(|(controllers, path)| {
        let top = Path::new("/sys/fs/cgroup");
        let top = match controllers.strip_prefix("name=").unwrap_or(controllers) {
            "" if top.join("cgroup.procs").exists() => top.to_owned(),
            "" => top.join("unified"),
            name => top.join(name),
        };
        let own = top.join(path.trim_start_matches('/'));
        // One process may run several tests, and /proc/self is our own namespace's: by the clock it is nobody else's.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = now.map_or(0, |now| now.as_nanos());
        let group = own.join(format!("tollgate-machine-{nanos}-{number}"));
        fs::create_dir(&group).ok().map(|()| group)
    });
    groups.collect()
}

/// Removes a control group and those in it, as soon as the last process in them is gone.
fn take_away(group: &Path) {
    let deadline = Instant::now() + BOUND;
    while fs::remove_dir(group).is_err() && group.exists() && Instant::now() < deadline {
        let within = fs::read_dir(group).into_iter().flatten().flatten();
        let within = within.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let groups: Vec<_> = within.map(|entry| entry.path()).collect();
        groups.iter().for_each(|group| take_away(group));
        thread::sleep(LOOK_AGAIN);
    }
}
