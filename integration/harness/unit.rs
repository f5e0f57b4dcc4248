//! What the shipped unit lets the process do, put upon relays that no systemd starts: the system call filters that systemd makes of its lines, the capabilities that
//! it leaves, and no new privileges. With [`ASKED`] in the environment every relay of the integration tests runs so.
//!
//! Not taken over are user, umask and mounts: the tests' directories are their own. `make interop` runs the unit whole, under systemd itself.
//!
//! The lists of system calls are those of the systemd that is installed (`systemd-analyze syscall-filter`), as they are when it runs the unit.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode},
    sync::OnceLock,
};

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};
use syscalls::Sysno;

/// In the environment: relays are started so.
pub const ASKED: &str = "TOLLGATE_UNIT_FILTER";
/// As first argument of this program: it is to become what follows, so.
const BECOME: &str = "--as-the-unit-says";
const UNIT: &str = include_str!("../../systemd/tollgate.service");
/// The system calls that may be made, a name a line, and this program where any user may walk: both in our own /run.
const CALLS: &str = "/run/unit-calls";
const PROGRAM: &str = "/run/unit-program";

/// System calls, as perl writes them, and what becomes of each under the unit: an error's name, or `-` where it is not the unit that has a say.
/// Without the unit each of them says something else where it has an error here.
pub const PROBES: [(&str, &str, &str); 19] = [
    ("socket", "16, 3, 0", "EAFNOSUPPORT"),
    ("socket", "2, 1, 0", "-"),
    ("socket", "1, 1, 0", "-"),
    ("mmap", "0, 4096, 7, 0x22, -1, 0", "EPERM"),
    ("mmap", "0, 4096, 3, 0x22, -1, 0", "-"),
    ("mprotect", "0, 0, 4", "EPERM"),
    ("mprotect", "0, 0, 3", "-"),
    ("unshare", "0x10000000", "EPERM"),
    ("clone3", "0, 0", "ENOSYS"),
    ("personality", "0x40000", "EPERM"),
    ("fchmodat", "-1, 0, 04000", "EPERM"),
    ("fchmodat", "-1, 0, 0700", "-"),
    ("io_uring_setup", "0, 0", "EPERM"),
    ("mlock", "0, 0", "EPERM"),
    ("add_key", "0, 0, 0, 0, 0", "EPERM"),
    ("setpriority", "0, 0, 0", "EPERM"),
    ("sched_setaffinity", "0, 0, 0", "-"),
    ("splice", "-1, 0, -1, 0, 0, 0", "-"),
    ("epoll_pwait2", "-1, 0, 0, 0, 0", "-"),
];

/// A program in Perl that makes each call of [`PROBES`] and prints one line: what came of each, separated by blanks.
pub fn prober() -> String {
    let calls = PROBES.iter().filter_map(|(name, arguments, _)| {
        let number = number(name)?;
        let name = ["EPERM", "ENOSYS", "EAFNOSUPPORT"]
            .map(|error| format!("$!{{{error}}} ? '{error}' : "))
            .concat();
        Some(format!(
            "$! = 0; syscall({number}, {arguments}); print {name} '-', ' ';\n"
        ))
    });
    calls.collect()
}

type Error = Box<dyn std::error::Error>;

/// What goes before a command that is to run as the unit says; nothing unless that was asked for.
///
/// # Panics
/// When it was asked for and cannot be had.
#[track_caller]
pub fn words() -> Vec<String> {
    match env::var_os(ASKED) {
        Some(_) => always(),
        None => Vec::new(),
    }
}

/// As [`words`], asked for or not.
///
/// # Panics
/// When it cannot be had.
#[track_caller]
pub fn always() -> Vec<String> {
    static READY: OnceLock<Result<(), String>> = OnceLock::new();
    let ready = READY.get_or_init(|| prepare().map_err(|error| error.to_string()));
    if let Err(error) = ready {
        panic!("{ASKED}: {error}");
    }
    vec![PROGRAM.to_owned(), BECOME.to_owned()]
}

/// This program as the one that becomes another, if it was started for that.
pub fn other_part() -> Option<fn() -> ExitCode> {
    (env::args_os().nth(1)? == BECOME).then_some(become_it)
}

fn prepare() -> Result<(), Error> {
    let calls = allowed()?.into_iter().collect::<Vec<_>>().join("\n");
    fs::write(CALLS, calls)?;
    fs::write(PROGRAM, "")?;
    let program = env::current_exe()?;
    let mut mount = Command::new("mount");
    let status = mount
        .arg("--bind")
        .args([&program, Path::new(PROGRAM)])
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{mount:?}: {status}").into()),
    }
}

/// Values of a setting, in the unit's order.
fn settings(name: &str) -> impl Iterator<Item = &'static str> {
    UNIT.lines()
        .filter_map(move |line| line.strip_prefix(name)?.strip_prefix('='))
}

fn is_set(name: &str) -> bool {
    settings(name).last() == Some("yes")
}

/// The names of the system calls that `SystemCallFilter=` leaves.
fn allowed() -> Result<BTreeSet<String>, Error> {
    // "@default" is in every list that allows.
    let mut allowed = members("@default")?;
    for setting in settings("SystemCallFilter") {
        let (words, takes_away) = match setting.strip_prefix('~') {
            Some(words) => (words, true),
            None => (setting, false),
        };
        for word in words.split(' ') {
            let calls = match word.starts_with('@') {
                true => members(word)?,
                false => BTreeSet::from([word.to_owned()]),
            };
            match takes_away {
                true => allowed.retain(|call| !calls.contains(call)),
                false => allowed.extend(calls),
            }
        }
    }
    Ok(allowed)
}

/// The system calls of a group, and of the groups in it.
fn members(group: &str) -> Result<BTreeSet<String>, Error> {
    let mut analyze = Command::new("systemd-analyze");
    let output = analyze
        .args(["--no-pager", "syscall-filter", group])
        .output()
        .map_err(|error| format!("cannot run systemd-analyze ({error}): install systemd"))?;
    let text = String::from_utf8(output.stdout)?;
    let mut found = BTreeSet::new();
    // The group itself, then what is in it, indented.
    for word in text.lines().filter_map(|line| line.strip_prefix("    ")) {
        match word.chars().next() {
            Some('@') => found.extend(members(word)?),
            Some('#') | None => {}
            Some(_) => {
                found.insert(word.to_owned());
            }
        }
    }
    match found.is_empty() {
        true => Err(format!("systemd knows no system calls of {group}").into()),
        false => Ok(found),
    }
}

fn become_it() -> ExitCode {
    match shut_in() {
        Ok(()) => {
            let mut words = env::args_os().skip(2);
            let mut command = Command::new(words.next().unwrap_or_default());
            let error = command.args(words).exec();
            complain(&format!("{command:?}: {error}"))
        }
        Err(error) => complain(&error.to_string()),
    }
}

fn complain(what: &str) -> ExitCode {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "as the unit says: {what}");
    ExitCode::FAILURE
}

/// Puts it all upon this process.
fn shut_in() -> Result<(), Error> {
    // The list of what is allowed last: it does not have the call that adds a filter.
    let mut programs = refused()?;
    programs.push(only_these()?);
    let kept = settings("CapabilityBoundingSet").last();
    if kept != Some("CAP_NET_BIND_SERVICE") {
        return Err(format!("capabilities of the unit are not as read here: {kept:?}").into());
    }
    for capability in CapabilitySet::all().difference(CapabilitySet::NET_BIND_SERVICE) {
        // Who may not give it up, or a kernel without it, has none to lose.
        let _ = remove_capability_from_bounding_set(capability);
    }
    set_no_new_privs(is_set("NoNewPrivileges"))?;
    for program in programs {
        apply_filter(&program)?;
    }
    Ok(())
}

fn arch() -> Result<TargetArch, Error> {
    Ok(TargetArch::try_from(env::consts::ARCH)?)
}

/// The filter of `SystemCallFilter=`. What this kernel's headers do not know by name cannot be called by it either.
fn only_these() -> Result<BpfProgram, Error> {
    let calls = fs::read_to_string(CALLS)?;
    let calls = calls.lines().filter_map(number);
    let rules = calls.map(|number| (number, Vec::new())).collect();
    let refuse = SeccompAction::Errno(error_number("EPERM"));
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch()?)?;
    Ok(filter.try_into()?)
}

fn number(name: &str) -> Option<i64> {
    let number: Sysno = name.parse().ok()?;
    i64::try_from(number as usize).ok()
}

fn error_number(name: &str) -> u32 {
    let error = match name {
        "ENOSYS" => rustix::io::Errno::NOSYS,
        "EAFNOSUPPORT" => rustix::io::Errno::AFNOSUPPORT,
        _ => rustix::io::Errno::PERM,
    };
    error.raw_os_error().unsigned_abs()
}

/// The filters of the other lines, which look at arguments: system call, and each of its ways to be refused, with the error.
fn refused() -> Result<Vec<BpfProgram>, Error> {
    let mut all: Vec<(&str, i64, Vec<SeccompRule>)> = Vec::new();
    let mut refuse = |error, name: &str, ways: Vec<Vec<SeccompCondition>>| -> Result<(), Error> {
        // An architecture may be without an old one.
        if let Some(number) = number(name) {
            let rules: Result<Vec<_>, _> = ways.into_iter().map(SeccompRule::new).collect();
            all.push((error, number, rules?));
        }
        Ok(())
    };
    if is_set("MemoryDenyWriteExecute") {
        refuse("EPERM", "mmap", vec![vec![has(2, 0b110)?]])?;
        refuse("EPERM", "mprotect", vec![vec![has(2, 0b100)?]])?;
        refuse("EPERM", "pkey_mprotect", vec![vec![has(2, 0b100)?]])?;
        refuse("EPERM", "shmat", vec![vec![has(2, 0o100_000)?]])?;
    }
    if is_set("RestrictNamespaces") {
        // CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET.
        const NEW: [u64; 7] = [
            0x2_0000,
            0x200_0000,
            0x400_0000,
            0x800_0000,
            0x1000_0000,
            0x2000_0000,
            0x4000_0000,
        ];
        let any = || NEW.map(|flag| Ok(vec![has(0, flag)?]));
        refuse(
            "EPERM",
            "clone",
            any().into_iter().collect::<Result<_, Error>>()?,
        )?;
        refuse(
            "EPERM",
            "unshare",
            any().into_iter().collect::<Result<_, Error>>()?,
        )?;
        refuse("EPERM", "setns", Vec::new())?;
        // Its flags are in memory, where no filter can look.
        refuse("ENOSYS", "clone3", Vec::new())?;
    }
    if is_set("RestrictSUIDSGID") {
        const CREATE: u64 = 0o100;
        for (name, mode, flags) in [
            ("chmod", 1, None),
            ("fchmod", 1, None),
            ("fchmodat", 2, None),
            ("fchmodat2", 2, None),
            ("mkdir", 1, None),
            ("mkdirat", 2, None),
            ("mknod", 1, None),
            ("mknodat", 2, None),
            ("creat", 1, None),
            ("open", 2, Some(1)),
            ("openat", 3, Some(2)),
        ] {
            let mut ways = Vec::new();
            for bit in [0o4000, 0o2000] {
                let mut way = vec![has(mode, bit)?];
                if let Some(flags) = flags {
                    way.push(has(flags, CREATE)?);
                }
                ways.push(way);
            }
            refuse("EPERM", name, ways)?;
        }
        refuse("ENOSYS", "openat2", Vec::new())?;
    }
    if is_set("LockPersonality") {
        // Asking for it is no change, and neither is what it is.
        let other = |value| condition(0, SeccompCmpOp::Ne, value);
        let way = vec![other(0)?, other(0xffff_ffff)?];
        refuse("EPERM", "personality", vec![way])?;
    }
    let families: Result<Vec<_>, Error> = settings("RestrictAddressFamilies")
        .flat_map(|families| families.split(' '))
        .map(|family| -> Result<u64, Error> {
            match family {
                "AF_UNIX" => Ok(1),
                "AF_INET" => Ok(2),
                "AF_INET6" => Ok(10),
                _ => Err(format!("{family} is not known here").into()),
            }
        })
        .map(|family| condition(0, SeccompCmpOp::Ne, family?))
        .collect();
    refuse("EAFNOSUPPORT", "socket", vec![families?])?;

    // A filter each, as systemd has: a program has one error for all that it refuses.
    let programs = all.into_iter().map(|(error, number, rules)| {
        let refuse = SeccompAction::Errno(error_number(error));
        let rules = BTreeMap::from([(number, rules)]);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch()?)?;
        Ok(filter.try_into()?)
    });
    programs.collect()
}

/// That an argument has these bits.
fn has(argument: u8, bits: u64) -> Result<SeccompCondition, Error> {
    condition(argument, SeccompCmpOp::MaskedEq(bits), bits)
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, Error> {
    let length = SeccompCmpArgLen::Dword;
    Ok(SeccompCondition::new(argument, length, operator, value)?)
}
