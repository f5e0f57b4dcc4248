//! The relays that are compared: which there are, from which binaries, with which settings.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{harness::relay, lab::Nat};

/// Which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// tollgate, as it is shipped.
    Ours,
    /// Another tollgate, to compare with.
    Before,
    /// tollgate with connections dialled ahead.
    OursAhead,
    /// tollgate with sockets for a long way.
    OursWan,
    /// nginx's stream proxy, as it is shipped.
    Nginx,
    /// With a larger buffer.
    NginxTuned,
    /// As it is shipped.
    Haproxy,
    /// With its own choice of when to splice.
    HaproxySpliceAuto,
    /// Splicing from the first byte.
    HaproxySplice,
    /// Splicing through large pipes.
    HaproxyTuned,
    /// tollgate as an ordinary user, alone and among idle connections.
    OursUnprivileged,
    OursAmongIdle,
    /// The same of the tuned HAProxy.
    HaproxyUnprivileged,
    HaproxyAmongIdle,
    /// The kernel forwards packets with other addresses on them.
    Nat,
    /// Client and origin on one wire.
    NoRelay,
}

/// One of those compared.
#[derive(Clone, Debug)]
pub(crate) struct Variant {
    /// For the program.
    pub(crate) role: Role,
    /// For the report and for `BENCH_RELAYS`: without a comma.
    pub(crate) name: String,
    /// What its binary says it is; `-` where there is none.
    pub(crate) version: String,
    /// What is set beyond one worker and where to listen.
    pub(crate) settings: String,
    pub(crate) kind: Kind,
}

/// How it is started.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Not at all.
    NoRelay,
    /// Nor this: the rules are there already.
    Nat,
    /// With more text for its configuration.
    Tollgate(PathBuf, Tuning),
    /// With lines for its `server` blocks.
    Nginx(PathBuf, String),
    /// With lines for `global` and for `defaults`.
    Haproxy(PathBuf, Vec<String>, Vec<String>),
}

/// More text for tollgate's configuration.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    /// Before the first table.
    pub(crate) top: String,
    /// For `[audit]`.
    pub(crate) audit: String,
    /// For `[resolver]`.
    pub(crate) resolver: String,
    /// For each `[[listener]]`.
    pub(crate) listener: String,
    /// For each `[[upstream]]`.
    pub(crate) upstream: String,
    /// For the end.
    pub(crate) end: String,
}

impl Default for Tuning {
    /// No more than that there is no audit trail: the peers write no line per connection either. What it costs is measured by itself.
    fn default() -> Self {
        let nothing = String::new;
        Self {
            top: nothing(),
            audit: "sink = \"off\"".to_owned(),
            resolver: nothing(),
            listener: nothing(),
            upstream: nothing(),
            end: nothing(),
        }
    }
}

/// What a variant runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Whoever we are.
    Same,
    /// An ordinary user without capabilities, by this id.
    Ordinary(u32),
}

impl Role {
    /// As whom it runs. Two users: what the kernel counts by user is counted for each relay by itself.
    pub(crate) fn user(self) -> User {
        match self {
            Self::OursUnprivileged | Self::HaproxyUnprivileged => User::Ordinary(65_534),
            Self::OursAmongIdle => User::Ordinary(65_533),
            Self::HaproxyAmongIdle => User::Ordinary(65_532),
            _ => User::Same,
        }
    }

    /// How many idle connections it has while it is measured.
    pub(crate) fn idle(self) -> usize {
        match self {
            Self::OursAmongIdle | Self::HaproxyAmongIdle => 1500,
            _ => 0,
        }
    }
}

/// What tollgate is told to hide a dial, and for a long way; and how many connections each upstream then has from the start.
const AHEAD: &str = "ahead = { min = 4, max = 64, max_age = \"10s\" }";
pub(crate) const LEAST_AHEAD: u64 = 4;
/// What differs from what is shipped, see [`Tuning`].
const NO_TRAIL: &str = "as shipped, without an audit trail";
const WAN: &str = "socket = { preset = \"wan\" }";

/// The variants, and which are left out and why.
pub(crate) fn variants(nat: &Result<Nat, String>) -> Result<(Vec<Variant>, Vec<String>), String> {
    let nginx = peer("NGINX", "nginx", "nginx libnginx-mod-stream")?;
    let haproxy = peer("HAPROXY", "haproxy", "haproxy")?;
    let tollgate = relay::binary();
    let more = env::var("BENCH_CONFIG").unwrap_or_default();
    let (mut all, mut left_out) = (Vec::new(), Vec::new());
    let mut add = |role, name: &str, version: &str, settings: &str, kind| {
        all.push(Variant {
            role,
            name: name.to_owned(),
            version: version.to_owned(),
            settings: settings.to_owned(),
            kind,
        });
    };

    let version_of = version(&tollgate, "--version")?;
    let tuned = |listener: &str, upstream: &str| {
        let (listener, upstream) = (listener.to_owned(), upstream.to_owned());
        let end = more.clone();
        Kind::Tollgate(
            tollgate.clone(),
            Tuning {
                listener,
                upstream,
                end,
                ..Tuning::default()
            },
        )
    };
    let ours = tuned("", "");
    let settings = match more.is_empty() {
        true => NO_TRAIL.to_owned(),
        false => format!("{NO_TRAIL}; {}", more.trim().replace('\n', "; ")),
    };
    let settings = settings.as_str();
    add(Role::Ours, "tollgate", &version_of, settings, ours.clone());
    if let Some(base) = env::var_os("TOLLGATE_BASE").filter(|path| !path.is_empty()) {
        let base = PathBuf::from(base);
        let version = version(&base, "--version")?;
        let bare = Tuning {
            audit: String::new(),
            ..Tuning::default()
        };
        let kind = Kind::Tollgate(base, bare);
        add(
            Role::Before,
            "tollgate before",
            &version,
            "as shipped",
            kind,
        );
    }

    add(
        Role::OursAhead,
        "tollgate ahead",
        &version_of,
        AHEAD,
        tuned("", AHEAD),
    );
    let both_legs = format!("{WAN} on both legs");
    add(
        Role::OursWan,
        "tollgate wan",
        &version_of,
        &both_legs,
        tuned(WAN, WAN),
    );

    let version_of_nginx = version(&nginx, "-v")?;
    let kind = |line: &str| Kind::Nginx(nginx.clone(), line.to_owned());
    let buffer = "proxy_buffer_size 256k;";
    add(
        Role::Nginx,
        "nginx",
        &version_of_nginx,
        "as shipped",
        kind(""),
    );
    add(
        Role::NginxTuned,
        "nginx 256k buffer",
        &version_of_nginx,
        buffer,
        kind(buffer),
    );

    let version_of_haproxy = version(&haproxy, "-v")?;
    let owned = |lines: &[&str]| {
        lines
            .iter()
            .map(|line| (*line).to_owned())
            .collect::<Vec<_>>()
    };
    let kind = |global: &[&str], defaults: &[&str]| {
        Kind::Haproxy(haproxy.clone(), owned(global), owned(defaults))
    };
    let both = ["option splice-request", "option splice-response"];
    let tuned = ["tune.pipesize 1048576"];
    let both_said = both.join("; ");
    let tuned_said = format!("{both_said}; {}", tuned[0]);
    let mut haproxy = |role, name, settings: &str, kind| {
        add(role, name, &version_of_haproxy, settings, kind);
    };
    haproxy(Role::Haproxy, "HAProxy", "as shipped", kind(&[], &[]));
    let auto = ["option splice-auto"];
    haproxy(
        Role::HaproxySpliceAuto,
        "HAProxy splice-auto",
        auto[0],
        kind(&[], &auto),
    );
    haproxy(
        Role::HaproxySplice,
        "HAProxy splice",
        &both_said,
        kind(&[], &both),
    );
    haproxy(
        Role::HaproxyTuned,
        "HAProxy splice 1M pipes",
        &tuned_said,
        kind(&tuned, &both),
    );
    let uid = format!("{tuned_said}; as an ordinary user");
    let unprivileged = [
        (
            Role::HaproxyUnprivileged,
            "HAProxy splice 1M pipes unprivileged",
        ),
        (
            Role::HaproxyAmongIdle,
            "HAProxy splice 1M pipes unprivileged among 1500 idle",
        ),
    ];
    for (role, name) in unprivileged {
        haproxy(role, name, &uid, kind(&tuned, &both));
    }
    let unprivileged = [
        (Role::OursUnprivileged, "tollgate unprivileged"),
        (Role::OursAmongIdle, "tollgate unprivileged among 1500 idle"),
    ];
    for (role, name) in unprivileged {
        let settings = format!("{settings}; as an ordinary user");
        add(role, name, &version_of, &settings, ours.clone());
    }
    match nat {
        Ok(nat) => add(
            Role::Nat,
            "kernel NAT",
            &nat.version,
            "DNAT and masquerade",
            Kind::Nat,
        ),
        Err(why) => left_out.push(format!("kernel NAT: not on this machine: {why}")),
    }
    add(
        Role::NoRelay,
        "no relay",
        "-",
        "client and origin on one wire",
        Kind::NoRelay,
    );
    Ok((all, left_out))
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

/// What a binary says it is.
pub(crate) fn version(binary: &Path, flag: &str) -> Result<String, String> {
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
