//! Relays in their own processes, started on the relay's host and core.

use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    harness::{
        relay::{Relay, Start},
        sockets::State,
    },
    lab::{Ends, World},
    processor::{self, Cores, Usage},
    settings::{self, Room},
    short,
    variant::{Kind, User, Variant},
};

/// How long a relay may take to listen.
const PATIENCE: Duration = Duration::from_secs(5);

/// A relay that runs until it is dropped; or none, for going without.
#[derive(Debug)]
pub(crate) struct Running {
    number: usize,
    process: Process,
    _idle: Option<Ends>,
}

#[derive(Debug)]
enum Process {
    None,
    Nat,
    Tollgate(Relay),
    Peer(Child, #[expect(dead_code, reason = "goes with it")] TempDir),
}

impl Variant {
    /// Starts it on the relay's host and core, and waits until it listens.
    pub(crate) fn start(
        &self,
        number: usize,
        world: &World,
        cores: &Cores,
        room: Room,
    ) -> Result<Running, String> {
        let mut wrapper = owned(&["taskset", "--cpu-list", &cores.relay.to_string()]);
        let user = self.role.user();
        if let (User::Ordinary(id), true) = (user, is_root_of_the_machine()) {
            wrapper.extend([
                "setpriv".to_owned(),
                format!("--reuid={id}"),
                format!("--regid={id}"),
                "--clear-groups".to_owned(),
            ]);
        }
        let failed = |error: io::Error| format!("{}: {error}", self.name);
        let process = match &self.kind {
            Kind::NoRelay => Process::None,
            Kind::Nat => Process::Nat,
            Kind::Tollgate(binary, more) => {
                let admin = format!("127.0.0.1:{}", 9900 + number);
                let binary = readable(binary, user).map_err(failed)?;
                let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
                let start = Start::with(&settings::tollgate(number, &admin, more));
                let start = start.admin(&admin).binary(&binary).through(&wrapper);
                Process::Tollgate(start.on(&world.relay))
            }
            Kind::Nginx(binary, server) => {
                let config = settings::nginx(binary, number, server, room).map_err(failed)?;
                peer_process(world, &wrapper, binary, &config, &["-c"]).map_err(failed)?
            }
            Kind::Haproxy(binary, global, defaults) => {
                let config = settings::haproxy(number, global, defaults, room);
                peer_process(world, &wrapper, binary, &config, &["-db", "-f"]).map_err(failed)?
            }
        };
        let mut running = Running {
            number,
            process,
            _idle: None,
        };
        if running.process_id().is_some() {
            self.wait_listening(number, world)?;
        }
        let idle = self.role.idle();
        if idle > 0 {
            let ends = world
                .connect(number, running.address(), idle)
                .and_then(|ends| {
                    short::once_each(&ends)?;
                    Ok(ends)
                });
            running._idle = Some(ends.map_err(failed)?);
        }
        Ok(running)
    }

    fn wait_listening(&self, number: usize, world: &World) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let listens = || {
            let sockets = world.relay.sockets();
            let there = |address| {
                let mut ours = sockets.iter().filter(|socket| socket.local == address);
                ours.any(|socket| socket.state == State::Listen)
            };
            there(World::entry(number)) && there(World::entry_with_header(number))
        };
        while !listens() {
            if Instant::now() > deadline {
                return Err(format!("{} does not listen", self.name));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Whether we are root outside of every user namespace: only then can we become somebody else, and only then do we have to, because to the
/// kernel's limits for ordinary users root of a user namespace is one.
pub(crate) fn is_root_of_the_machine() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The binary where an ordinary user can read it: under /run, which is ours alone.
fn readable(binary: &Path, user: User) -> io::Result<PathBuf> {
    if user == User::Same {
        return Ok(binary.to_owned());
    }
    let copy = PathBuf::from("/run/tollgate-for-all");
    if !copy.exists() {
        fs::copy(binary, &copy)?;
        fs::set_permissions(&copy, Permissions::from_mode(0o755))?;
    }
    Ok(copy)
}

fn peer_process(
    world: &World,
    wrapper: &[String],
    binary: &Path,
    config: &str,
    flags: &[&str],
) -> io::Result<Process> {
    let folder = TempDir::new_in("/run")?;
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777))?;
    let file = folder.path().join("config");
    fs::write(
        &file,
        config.replace("@DIR@", &folder.path().to_string_lossy()),
    )?;
    let mut command: Command = world.relay.command(&wrapper[0]);
    command
        .args(&wrapper[1..])
        .arg(binary)
        .args(flags)
        .arg(&file);
    // `make bench NGINX=PATH` is for us: to nginx, a variable of that name lists sockets it is to take over.
    command.env_remove("NGINX");
    // What it has to say goes to our standard error.
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    Ok(Process::Peer(child, folder))
}

impl Running {
    /// Which one it is: its ports go by that.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Where the client connects.
    pub(crate) fn address(&self) -> SocketAddr {
        match self.process {
            Process::None => World::direct(self.number),
            Process::Nat => World::entry_of_nat(self.number),
            _ => World::entry(self.number),
        }
    }

    /// Where it connects to send a header first; `None` where nobody would read one.
    pub(crate) fn address_with_header(&self) -> Option<SocketAddr> {
        let listens = self.process_id().is_some();
        listens.then(|| World::entry_with_header(self.number))
    }

    /// What its processes used so far; `None` where there is no relay.
    pub(crate) fn usage(&self) -> io::Result<Option<Usage>> {
        self.process_id().map(Usage::of).transpose()
    }

    /// Lets its processes run on this core only.
    pub(crate) fn move_to(&self, core: usize) -> io::Result<()> {
        self.process_id()
            .map_or(Ok(()), |id| processor::move_to(id, core))
    }

    /// The relay that is ours.
    pub(crate) fn tollgate(&self) -> Option<&Relay> {
        match &self.process {
            Process::Tollgate(relay) => Some(relay),
            _ => None,
        }
    }

    /// The first of its processes; `None` where there is none.
    pub(crate) fn process_id(&self) -> Option<u32> {
        match &self.process {
            Process::None | Process::Nat => None,
            Process::Tollgate(relay) => Some(relay.id()),
            Process::Peer(child, _) => Some(child.id()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Process::Peer(child, _) = &mut self.process {
            // Not KILL: nginx's worker would outlive its master.
            let process = i32::try_from(child.id()).ok();
            if let Some(process) = process.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
            }
            let _ = child.wait();
        }
    }
}
