//! S13: another process of the same user has all the pipes there are for that user.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::SystemTime,
};

use libtest_mimic::Trial;
use rustix::{param::page_size, pipe::fcntl_setpipe_size};

use super::{
    peers::{Peers, Way, in_mode},
    regression::complete,
    world::Hosts,
};
use crate::{
    claim_alone,
    harness::relay::{self, Start},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![claim_alone(
        "without_pipes_for_its_user_traffic_is_copied",
        // Then the quota is that of whoever runs the tests, and all relays are theirs.
        || user().is_none(),
        quota_taken,
    )]
}

/// Set in the process that takes the pipes.
pub(crate) const HOLDER: &str = "TOLLGATE_PIPE_HOLDER";

/// Pages that a user's pipes may have together.
const QUOTA: &str = "/proc/sys/fs/pipe-user-pages-soft";

/// The part of the process that takes the pipes: all that the quota leaves, until it is told to end.
pub(crate) fn hold() -> ExitCode {
    let mut pipes = Vec::new();
    let mut size = 1 << 20;
    // The smallest that is not granted beyond the quota: two pages are, to anybody.
    while size > 2 * page_size() {
        let Ok((output, input)) = io::pipe() else {
            return ExitCode::FAILURE;
        };
        match fcntl_setpipe_size(&input, size) {
            Ok(_) => pipes.push((output, input)),
            Err(_) => size /= 2,
        }
    }
    let _ = writeln!(io::stdout(), "{} pipes", pipes.len());
    let _ = io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}

/// Whom relay and holder are to be, if we may choose: not one who has a process already, or another run of this test. Root is exempt from
/// the quota, but not root of a user namespace: that one is whoever runs the tests.
fn user() -> Option<u32> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let everybody = map.split_whitespace().eq(["0", "0", "4294967295"]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let any = now.map_or(0, |now| now.subsec_micros());
    everybody.then(|| 100_000 + any)
}

struct Holder(Child);

impl Holder {
    #[track_caller]
    fn start(user: Option<u32>) -> Self {
        // Not by its path, which that user may not be allowed to walk.
        let mut command = Command::new("/proc/self/exe");
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        command.env(HOLDER, "1").stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert!(line.ends_with(" pipes\n"), "it said {line:?}");
        Self(child)
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

/// A relay that is this user, if we may choose.
fn as_user(start: Start, user: Option<u32>, folder: &std::path::Path) -> Start {
    let Some(user) = user else {
        return start;
    };
    // Where that user may read it.
    let copy = folder.join("tollgate");
    fs::copy(relay::binary(), &copy).unwrap();
    let [uid, gid] = ["reuid", "regid"].map(|id| format!("--{id}={user}"));
    start
        .binary(&copy)
        .through(&["setpriv", &uid, &gid, "--clear-groups"])
}

fn quota_taken() {
    const MORE: u64 = 3_000_000;
    const WAITING: u64 = 1_200_000;
    if fs::read_to_string(QUOTA).is_ok_and(|pages| pages.trim() == "0") {
        let _ = writeln!(io::stderr(), "{QUOTA} is 0: there is no quota to be taken");
        return;
    }
    let user = user();
    let folder = tempfile::tempdir_in("/run").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for mode in ["splice", "adaptive"] {
        let hosts = Hosts::new("pipe-quota");
        hosts
            .relay
            .sysctl("net.ipv4.tcp_rmem", "4096 4194304 6291456");
        let peers = Peers::between(hosts, as_user(in_mode(mode), user, folder.path()));
        // Bulk from the first byte: it waits in front of the relay.
        let bulk = || {
            for way in Way::ALL {
                let (mut sender, mut receiver) = peers.open_along(way, 10);
                {
                    let _frozen = peers.freeze();
                    sender.send(WAITING);
                    sender.acknowledged();
                }
                thread::scope(|scope| {
                    scope.spawn(|| sender.send(MORE));
                    receiver.expect(WAITING + MORE);
                });
                complete(&mut sender, &mut receiver);
            }
        };
        let holder = Holder::start(user);
        bulk();
        peers.wait_closed("completed", 2);
        let fallbacks = |reason| {
            let labels = [("reason", reason)];
            peers
                .relay
                .metric("tollgate_splice_fallbacks_total", &labels)
        };
        assert!(
            fallbacks("small_pipe") >= 2,
            "one in each direction at least"
        );
        assert_eq!(fallbacks("no_pipe") + fallbacks("splice"), 0);
        let sum = 2 * (WAITING + MORE);
        assert_eq!((peers.moved_by("copy"), peers.moved_by("splice")), (sum, 0));
        holder.end();
        bulk();
        peers.wait_closed("completed", 4);
        assert!(peers.moved_by("splice") > 0, "there are pipes again");
        assert_eq!(peers.moved_by("copy") + peers.moved_by("splice"), 2 * sum);
        for way in Way::ALL {
            assert_eq!(peers.booked(way), sum);
        }
        peers.assert_at_rest();
    }
}
