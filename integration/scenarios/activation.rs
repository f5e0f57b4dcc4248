//! Listening sockets that are passed to the relay, as systemd does it with `tollgate.socket`. Here it is the test that opens them and keeps them.

use std::{
    io::{self, Write},
    net::SocketAddr,
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Command, ExitCode},
};

use libtest_mimic::Trial;
use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::world::{ENDPOINT, Hosts, LISTENER, ORIGIN, connected, exchange, shipped};
use crate::{
    claim,
    harness::{
        agent::Agent,
        netns::Host,
        origin::{Manner, Origin},
        relay::{Signal, Start},
        sockets::State,
        stream::End,
    },
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "passed_socket_keeps_who_connects_between_two_relays",
            passed_socket_keeps_who_connects_between_two_relays,
        ),
        claim(
            "passed_socket_that_shares_its_address_is_one_of_several",
            passed_socket_that_shares_its_address_is_one_of_several,
        ),
        claim(
            "passed_sockets_are_all_accepted_from_though_workers_are_fewer",
            passed_sockets_are_all_accepted_from_though_workers_are_fewer,
        ),
        claim(
            "passed_socket_that_nobody_wants_is_named_and_closed",
            passed_socket_that_nobody_wants_is_named_and_closed,
        ),
        claim(
            "sockets_passed_to_another_process_are_left_alone",
            sockets_passed_to_another_process_are_left_alone,
        ),
    ]
}

/// Says to this program which sockets of which process it is to pass on: `PID:FD,…`.
pub(crate) const PASSED: &str = "TOLLGATE_PASS_SOCKETS";

/// The part of systemd: takes the sockets, and becomes the program that its arguments name, with the sockets where that one expects them.
pub(crate) fn pass() -> ExitCode {
    let error = match taken() {
        Ok(sockets) => {
            let mut arguments = std::env::args_os().skip(1);
            let mut command = Command::new(arguments.next().unwrap_or_default());
            command
                .args(arguments)
                .env_remove(PASSED)
                .env("LISTEN_FDS", sockets.to_string())
                .env("LISTEN_PID", std::process::id().to_string());
            command.exec()
        }
        Err(error) => error,
    };
    let _ = writeln!(io::stderr(), "sockets cannot be passed: {error}");
    ExitCode::FAILURE
}

/// How many sockets are at 3 and above now, not to be closed by exec.
fn taken() -> io::Result<i32> {
    let wanted = std::env::var(PASSED).map_err(io::Error::other)?;
    let mut expected = 3;
    for one in wanted.split(',') {
        let nonsense = || io::Error::other(format!("{one}: nonsense"));
        let (process, descriptor) = one.split_once(':').ok_or_else(nonsense)?;
        let process = process.parse().ok().and_then(Pid::from_raw);
        // Its own descriptor is gone again before the socket takes its number.
        let process = pidfd_open(process.ok_or_else(nonsense)?, PidfdFlags::empty())?;
        let descriptor = descriptor.parse().map_err(|_| nonsense())?;
        let socket = pidfd_getfd(&process, descriptor, PidfdGetfdFlags::empty())?;
        drop(process);
        let socket = rustix::io::fcntl_dupfd_cloexec(&socket, 3)?;
        if socket.as_raw_fd() != expected {
            return Err(io::Error::other(format!("{expected} is open already")));
        }
        fcntl_setfd(&socket, FdFlags::empty())?;
        // It lives until the process does.
        std::mem::forget(socket);
        expected += 1;
    }
    Ok(expected - 3)
}

/// A listening socket on a host.
#[track_caller]
fn listening(host: &Host, address: &str, reuse_port: bool) -> Socket {
    let address: SocketAddr = address.parse().unwrap();
    let socket = host.call(move || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok::<_, io::Error>(socket)
    });
    socket.unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// Started with these sockets passed.
fn with(start: Start, sockets: &[&Socket]) -> Start {
    let own = std::process::id();
    let list: Vec<String> = sockets
        .iter()
        .map(|socket| format!("{own}:{}", socket.as_raw_fd()))
        .collect();
    let program = std::env::current_exe().unwrap();
    let start = start.env(PASSED, &list.join(","));
    start.through(&[program.to_str().unwrap()])
}

/// How many sockets of a host listen at the listener's port.
fn listening_at(host: &Host) -> usize {
    let port: u16 = LISTENER.rsplit(':').next().unwrap().parse().unwrap();
    let sockets = host.sockets().into_iter();
    let listening = sockets.filter(|socket| socket.state == State::Listen);
    listening
        .filter(|socket| socket.local.port() == port)
        .count()
}

fn workers(n: usize) -> Start {
    shipped().replace(
        "[health]\n",
        &format!("workers = {n}\n[drain]\naccept_for = \"0s\"\n[health]\n"),
    )
}

/// Many connections, so that whatever has a share of them has some.
#[track_caller]
fn exchange_often(hosts: &Hosts) {
    for _ in 0..60 {
        exchange(&hosts.node);
    }
}

fn passed_socket_keeps_who_connects_between_two_relays() {
    let hosts = Hosts::new("activated");
    let _origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let socket = listening(&hosts.relay, "0.0.0.0:8443", false);
    let first = with(workers(2), &[&socket]).on(&hosts.relay);
    assert_eq!(listening_at(&hosts.relay), 1, "the passed one and no other");
    exchange_often(&hosts);
    first.signal(Signal::TERM);
    assert_eq!(first.wait_exit(), 0);
    // Nobody is there, and nobody is refused.
    let mut waiting = hosts.node.run(connected(ENDPOINT)).unwrap();
    let _second = with(workers(2), &[&socket]).on(&hosts.relay);
    hosts.node.run(async move {
        waiting.exchange(1000).await.unwrap();
        waiting.finish().unwrap();
        assert_eq!(waiting.expect_to_end(0).await.unwrap(), End::Fin);
    });
    exchange_often(&hosts);
}

fn passed_socket_that_shares_its_address_is_one_of_several() {
    let hosts = Hosts::new("activated-shared");
    let _origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let socket = listening(&hosts.relay, "0.0.0.0:8443", true);
    let relay = with(workers(3), &[&socket]).on(&hosts.relay);
    assert_eq!(listening_at(&hosts.relay), 3, "each worker has one");
    exchange_often(&hosts);
    drop(relay);
    // What root has opened, others may not join: then the passed one is the only one.
    let user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let program = std::env::current_exe().unwrap();
    let wrapper: Vec<&str> = [program.to_str().unwrap()]
        .into_iter()
        .chain(user)
        .collect();
    let _relay = with(workers(3), &[&socket])
        .through(&wrapper)
        .on(&hosts.relay);
    assert_eq!(listening_at(&hosts.relay), 1);
    exchange_often(&hosts);
}

fn passed_sockets_are_all_accepted_from_though_workers_are_fewer() {
    let hosts = Hosts::new("activated-many");
    let _origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let sockets = [(); 5].map(|()| listening(&hosts.relay, "0.0.0.0:8443", true));
    let passed: Vec<&Socket> = sockets.iter().collect();
    let _relay = with(workers(2), &passed).on(&hosts.relay);
    exchange_often(&hosts);
}

fn passed_socket_that_nobody_wants_is_named_and_closed() {
    let hosts = Hosts::new("activated-stranger");
    let _origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let stranger = listening(&hosts.relay, "127.0.0.1:7777", false);
    let silent = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    let relay = with(workers(2), &[&stranger, &silent]).on(&hosts.relay);
    exchange(&hosts.node);
    assert_eq!(listening_at(&hosts.relay), 2);
    assert_eq!(relay.log_lines("127.0.0.1:7777").len(), 1);
    assert_eq!(relay.log_lines("ListenStream=").len(), 1);
    drop(stranger);
    let refused = hosts.relay.run(async {
        let to = "127.0.0.1:7777".parse().unwrap();
        Agent::connect(to).await.err().map(|error| error.kind())
    });
    let kind = io::ErrorKind::ConnectionRefused;
    assert_eq!(refused, Some(kind), "the relay does not hold it any more");
}

fn sockets_passed_to_another_process_are_left_alone() {
    let hosts = Hosts::new("activated-other");
    let _origin = Origin::start(&hosts.origin, ORIGIN, Manner::Echo);
    let start = workers(2).env("LISTEN_PID", "1").env("LISTEN_FDS", "3");
    let relay = start.on(&hosts.relay);
    exchange(&hosts.node);
    assert_eq!(relay.log_lines("a socket was passed").len(), 0);
    assert_eq!(listening_at(&hosts.relay), 2);
}
