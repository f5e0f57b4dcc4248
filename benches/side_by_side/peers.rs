//! The relays that are compared, and how each is started: with what its package ships, one thread, one listener, one upstream.

use std::{
    env, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    harness::{
        relay::{self, Relay, Start},
        sockets::State,
    },
    lab::{NAME_SERVER, ORIGIN_NAME, World},
    processor::{self, Cores, Usage},
};

/// How long a relay may take to listen.
const PATIENCE: Duration = Duration::from_secs(5);

/// One of those compared.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    /// For the report and for `BENCH_RELAYS`.
    pub(crate) name: String,
    /// What its binary says it is.
    pub(crate) version: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    NoRelay,
    Tollgate(PathBuf),
    /// With lines for its `server` block.
    Nginx(PathBuf, &'static str),
    /// With lines for `global` and for `defaults`.
    Haproxy(PathBuf, &'static str, &'static str),
}

/// The name of the variant that ratios are about.
pub(crate) const OURS: &str = "tollgate";
/// Those that ratios are to.
pub(crate) const NGINX: &str = "nginx";
pub(crate) const HAPROXY: &str = "HAProxy";

/// All of them.
pub(crate) fn variants() -> Result<Vec<Variant>, String> {
    let nginx = peer("NGINX", "nginx", "nginx libnginx-mod-stream")?;
    let haproxy = peer("HAPROXY", "haproxy", "haproxy")?;
    let nginx_version = version(&nginx, "-v")?;
    let haproxy_version = version(&haproxy, "-v")?;
    let tollgate = relay::binary();
    let new = |name: &str, version: &str, kind| Variant {
        name: name.to_owned(),
        version: version.to_owned(),
        kind,
    };
    let mut all = vec![new(
        OURS,
        &version(&tollgate, "--version")?,
        Kind::Tollgate(tollgate),
    )];
    if let Some(base) = env::var_os("TOLLGATE_BASE").map(PathBuf::from) {
        let version = version(&base, "--version")?;
        all.push(new("tollgate before", &version, Kind::Tollgate(base)));
    }
    let tuned_buffer = "proxy_buffer_size 256k;";
    let splice = "option splice-auto";
    all.extend([
        new(NGINX, &nginx_version, Kind::Nginx(nginx.clone(), "")),
        new(
            "nginx 256k buffer",
            &nginx_version,
            Kind::Nginx(nginx, tuned_buffer),
        ),
        new(
            HAPROXY,
            &haproxy_version,
            Kind::Haproxy(haproxy.clone(), "", ""),
        ),
        new(
            "HAProxy splice-auto",
            &haproxy_version,
            Kind::Haproxy(haproxy, "", splice),
        ),
        new("no relay", "-", Kind::NoRelay),
    ]);
    Ok(all)
}

/// `$VARIABLE`, or the program where the system has it.
fn peer(variable: &str, program: &str, packages: &str) -> Result<PathBuf, String> {
    if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    // Debian puts both where an ordinary user's PATH does not lead.
    let path = env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/local/sbin";
    let mut places = path
        .split(':')
        .map(|folder| Path::new(folder).join(program));
    places.find(|path| path.is_file()).ok_or_else(|| {
        format!("{program} is not here: apt-get install {packages}, or {variable}=PATH")
    })
}

fn version(binary: &Path, flag: &str) -> Result<String, String> {
    let output = Command::new(binary).arg(flag).output();
    let output = output.map_err(|error| format!("{}: {error}", binary.display()))?;
    // nginx says it on standard error.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().next().unwrap_or_default();
    let line = line.trim_start_matches("nginx version: ");
    let line = line.split(" - ").next().unwrap_or(line);
    Ok(line.trim_end_matches(['/', ' ']).to_owned())
}

/// A relay that runs until it is dropped; or none, for going without.
#[derive(Debug)]
pub(crate) struct Running {
    number: usize,
    process: Process,
}

#[derive(Debug)]
enum Process {
    None,
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
    ) -> Result<Running, String> {
        let core = cores.relay.to_string();
        let pinned = ["taskset", "--cpu-list", &core];
        let started = match &self.kind {
            Kind::NoRelay => {
                return Ok(Running {
                    number,
                    process: Process::None,
                });
            }
            Kind::Tollgate(binary) => {
                let admin = format!("127.0.0.1:{}", 9900 + number);
                let start = Start::with(&tollgate_config(number, &admin));
                let start = start.admin(&admin).binary(binary).through(&pinned);
                Ok(Process::Tollgate(start.on(&world.relay)))
            }
            Kind::Nginx(binary, server) => nginx_config(binary, number, server)
                .and_then(|config| peer_process(world, &pinned, binary, &config, &["-c"])),
            Kind::Haproxy(binary, global, defaults) => {
                let config = haproxy_config(number, global, defaults);
                peer_process(world, &pinned, binary, &config, &["-db", "-f"])
            }
        };
        let process = started.map_err(|error| format!("{}: {error}", self.name))?;
        let running = Running { number, process };
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
        Ok(running)
    }
}

/// Shipped defaults, but for what makes it equal to the others: one worker, a listener without a header in front. The one with a header is as in
/// use: policy, accounts, and an upstream that is a name.
fn tollgate_config(number: usize, admin: &str) -> String {
    let (plain, header) = (World::entry(number), World::entry_with_header(number));
    let origin = World::origin(number);
    let port = origin.port();
    format!(
        r#"
workers = 1
[admin]
bind = "{admin}"
[resolver]
servers = ["{NAME_SERVER}"]
[[listener]]
name = "plain"
bind = "{plain}"
proxy_protocol = "off"
upstream = "origin"
[[listener]]
name = "header"
bind = "{header}"
proxy_protocol = "v2"
trusted_peers = ["10.1.0.0/24"]
upstream = "origin-by-name"
[[upstream]]
name = "origin"
targets = ["{origin}"]
[[upstream]]
name = "origin-by-name"
targets = ["{ORIGIN_NAME}:{port}"]
"#
    )
}

/// `@DIR@` is filled in by [`peer_process`].
fn nginx_config(binary: &Path, number: usize, server: &str) -> io::Result<String> {
    let output = Command::new(binary).arg("-V").output()?;
    let built = String::from_utf8_lossy(&output.stderr).into_owned();
    let modules = built
        .split_whitespace()
        .find_map(|word| word.strip_prefix("--modules-path="));
    let load = match (built.contains("--with-stream=dynamic"), modules) {
        (true, Some(modules)) => format!("load_module {modules}/ngx_stream_module.so;"),
        _ => String::new(),
    };
    let (plain, header) = (World::entry(number), World::entry_with_header(number));
    let origin = World::origin(number);
    Ok(format!(
        "{load}
daemon off;
user root;
worker_processes 1;
pid @DIR@/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
stream {{
    server {{
        listen {plain};
        proxy_pass {origin};
        {server}
    }}
    server {{
        listen {header} proxy_protocol;
        proxy_pass {origin};
        {server}
    }}
}}
"
    ))
}

fn haproxy_config(number: usize, global: &str, defaults: &str) -> String {
    let (plain, header) = (World::entry(number), World::entry_with_header(number));
    let origin = World::origin(number);
    format!(
        "global
    nbthread 1
    maxconn 4096
    {global}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
    {defaults}
listen plain
    bind {plain}
    server origin {origin}
listen header
    bind {header} accept-proxy
    server origin {origin}
"
    )
}

fn peer_process(
    world: &World,
    pinned: &[&str],
    binary: &Path,
    config: &str,
    flags: &[&str],
) -> io::Result<Process> {
    let folder = TempDir::new_in("/run")?;
    let file = folder.path().join("config");
    fs::write(
        &file,
        config.replace("@DIR@", &folder.path().to_string_lossy()),
    )?;
    let mut command = world.relay.command(pinned[0]);
    command
        .args(&pinned[1..])
        .arg(binary)
        .args(flags)
        .arg(&file);
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
            _ => World::entry(self.number),
        }
    }

    /// Where it connects to send a header first; `None` where nobody would read one.
    pub(crate) fn address_with_header(&self) -> Option<SocketAddr> {
        match self.process {
            Process::None => None,
            _ => Some(World::entry_with_header(self.number)),
        }
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

    fn process_id(&self) -> Option<u32> {
        match &self.process {
            Process::None => None,
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
