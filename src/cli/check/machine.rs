//! What a relay needs of its machine: ports, directories, descriptors, pipes.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

use super::probe::Line;
use super::running::Running;
use crate::config::{Config, Sink, Upstream};
use crate::listener::could_bind;

/// Pages of pipes below which bulk transfers among hundreds of sessions go without: what the shipped sysctl file sets.
const PIPE_PAGES: u64 = 131_072;

/// Local ports below which nobody should be content: what the shipped sysctl file sets, give or take.
const LOCAL_PORTS: usize = 50_000;

/// Whether each address may be listened on, where no relay does so already.
pub(super) fn ports(config: &Config, running: Option<&Running>) -> Vec<Line> {
    let listeners = config.listeners.iter().flat_map(|listener| {
        let name = format!("listener {}", listener.name);
        listener.bind.iter().map(move |bind| (name.clone(), *bind))
    });
    let admin = config.admin.map(|bind| ("[admin]".to_owned(), bind));
    let health = config
        .health
        .as_ref()
        .map(|health| ("[health]".to_owned(), health.bind));
    // A relay that runs has these two already, as far as can be seen.
    let own = admin
        .into_iter()
        .chain(health)
        .filter(|_| running.is_none());
    let wanted = listeners.filter(|(_, bind)| !running.is_some_and(|running| running.has(*bind)));
    let refused = wanted.chain(own).filter_map(|(what, bind)| {
        let error = could_bind(bind).err()?;
        Some(Err(format!("{what}: {bind}: {}", unbound(bind, &error))))
    });
    refused.collect()
}

fn unbound(bind: SocketAddr, error: &io::Error) -> String {
    let port = bind.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "somebody else listens there: end it, or write another port; ss -ltnp 'sport = :{port}' tells who"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "user {} may not listen below port {}: run it as the shipped unit does, with CAP_NET_BIND_SERVICE, or write a higher port",
            geteuid().as_raw(),
            sysctl("net.ipv4.ip_unprivileged_port_start", 0).unwrap_or(1024)
        ),
        io::ErrorKind::AddrNotAvailable => {
            "no interface has this address: write one that ip addr shows, or 0.0.0.0".to_owned()
        }
        _ => format!("cannot be listened on: {error}"),
    }
}

/// Whether this user may write what is to be written, and read what is to be read. Nothing is made.
pub(super) fn places(config: &Config) -> Vec<Line> {
    let mut found = Vec::new();
    let mut written = |what: &str, path: &Path| {
        let Err((at, error)) = may_be_made(path) else {
            return;
        };
        let user = geteuid().as_raw();
        found.push(Err(format!(
            "{what}: {}: user {user} cannot write in {} ({error}): give it to the user that the relay runs as, or check as that user: sudo -u tollgate tollgate check --probe",
            path.display(),
            at.display()
        )));
    };
    if let Some(state) = &config.state_dir {
        written("state_dir", state);
    }
    if let Some(run) = &config.run_dir {
        written("run_dir", run);
    }
    if let Some(folder) = config.admin_socket.as_deref().and_then(Path::parent)
        && Some(folder) != config.run_dir.as_deref()
    {
        written("[admin] socket", folder);
    }
    if let Sink::File(file) = &config.audit.sink {
        // It is rotated: its directory is written to.
        written("[audit] sink", file.parent().unwrap_or(Path::new("/")));
        if let Err(error) = access(file, Access::WRITE_OK)
            && error != rustix::io::Errno::NOENT
        {
            let error = io::Error::from(error);
            let file = file.display();
            found.push(Err(format!(
                "[audit] sink: {file} cannot be written ({error}): give it to the user that the relay runs as"
            )));
        }
    }
    if let Some(key) = &config.audit.key_file
        && let Err(error) = fs::File::open(key)
    {
        let key = key.display();
        found.push(Err(format!(
            "[audit] key_file: {key} cannot be read ({error}): no record would be chained, and the relay does not start"
        )));
    }
    found
}

/// Whether `path` can be made or, where it is there, written in; else the directory that stands in the way.
fn may_be_made(path: &Path) -> Result<(), (PathBuf, io::Error)> {
    for at in path.ancestors() {
        match access(at, Access::WRITE_OK | Access::EXEC_OK) {
            Ok(()) if at.is_dir() => return Ok(()),
            Ok(()) => return Err((at.to_owned(), io::ErrorKind::NotADirectory.into())),
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err((at.to_owned(), error.into())),
        }
    }
    Ok(())
}

/// Whether descriptors and pipes do for what is configured.
pub(super) fn limits(config: &Config, running: Option<&Running>) -> Vec<Line> {
    let mut found = Vec::new();
    let sessions: usize = config
        .listeners
        .iter()
        .map(|listener| listener.max_sessions)
        .sum();
    let needed = 2 * sessions as u64;
    // Of one that is not there yet nobody knows what it will be given; more than this it cannot.
    let (files, raise) = match running.map(Running::open_files) {
        Some(files) => (files, "LimitNOFILE of its unit"),
        None => (sysctl("fs.nr_open", 0), "fs.nr_open"),
    };
    if let Some(files) = files.filter(|files| *files < needed) {
        found.push(Err(format!(
            "descriptors: {files} are enough for {} sessions, two each, and max_sessions allows {sessions}: raise {raise} to {}, or lower max_sessions",
            files / 2,
            needed + needed / 16
        )));
    }
    let pages = sysctl("fs.pipe-user-pages-soft", 0);
    if let Some(pages) = pages.filter(|pages| *pages != 0 && *pages < PIPE_PAGES)
        && !is_unbounded(running)
    {
        found.push(Err(format!(
            "pipes: {} pipes of 256 KiB, and bulk transfers beyond them are copied instead of spliced: set fs.pipe-user-pages-soft = {PIPE_PAGES} (now {pages}), as the shipped sysctl file does",
            pages * 4 / 256
        )));
    }
    found
}

/// Whether the kernel bounds no pipes of the relay's: CAP_SYS_RESOURCE or CAP_SYS_ADMIN (pipe(7)).
fn is_unbounded(running: Option<&Running>) -> bool {
    const EITHER: CapabilitySet = CapabilitySet::SYS_RESOURCE.union(CapabilitySet::SYS_ADMIN);
    let own = || capabilities(None).ok().map(|sets| sets.effective);
    let theirs = |running: &Running| running.capabilities().map(CapabilitySet::from_bits_retain);
    let has = running.map_or_else(own, theirs);
    has.is_some_and(|has| has.intersects(EITHER))
}

/// What is wrong where so many sessions may come, and an upstream has so few addresses.
pub(super) fn local_ports(
    upstream: &Upstream,
    addresses: usize,
    sessions: usize,
) -> Option<String> {
    let key = "net.ipv4.ip_local_port_range";
    let (low, high) = (sysctl(key, 0)?, sysctl(key, 1)?);
    let ports = usize::try_from((high + 1).saturating_sub(low)).ok()?;
    let most = ports.saturating_mul(addresses);
    (addresses > 0 && most < sessions && ports < LOCAL_PORTS).then(|| {
        let of = if addresses == 1 { "address" } else { "addresses" };
        format!(
            "{}: ports: {low} to {high} are enough for {most} sessions to its {addresses} {of}, and max_sessions allows {sessions}: set {key} = 10240 65535, as the shipped sysctl file does",
            upstream.name
        )
    })
}

/// The `n`th number that the kernel has under a key.
fn sysctl(key: &str, n: usize) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/"))).ok()?;
    text.split_whitespace().nth(n)?.parse().ok()
}
