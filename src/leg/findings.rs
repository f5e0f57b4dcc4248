//! What an operator chose for a leg's sockets and this machine does not give: said by `check` beforehand, and by `run` as it starts.

use std::fs;
use std::io;

use rustix::thread::{CapabilitySet, capabilities};
use socket2::{Domain, Socket, Type};

use super::shape::{is_wish, refused, shape};
use super::wan;
use crate::config::{SocketOptions, size_text};

/// What of `options` this process has no right to, or the kernel cuts or holds back, each with what to do about it. Opens sockets, and no
/// connection; loads no module.
#[must_use]
pub fn findings(options: &SocketOptions) -> Vec<String> {
    if *options == SocketOptions::default() {
        return Vec::new();
    }
    Machine::asked(options).findings(options)
}

/// What the kernel says of this machine, as this process sees it.
#[derive(Debug, Clone, Default)]
struct Machine {
    /// Congestion controls it has.
    available: Vec<String>,
    /// Those that any process may choose.
    allowed: Vec<String>,
    /// Whether this one may choose any.
    administrator: bool,
    /// SO_SNDBUF and SO_RCVBUF, read back after they were set.
    send_buffer: Option<usize>,
    receive_buffer: Option<usize>,
    /// Why a socket cannot be bound to the source.
    source: Option<String>,
    /// The last numbers of `net.ipv4.tcp_wmem` and `tcp_rmem`.
    largest_send: Option<u64>,
    largest_receive: Option<u64>,
    /// Bytes in all TCP sockets from which on the kernel lets no buffer grow: the second number of `net.ipv4.tcp_mem`.
    pressure: Option<u64>,
    /// Switches that are set the wrong way for a long way, and the right one.
    switches: Vec<(&'static str, u64)>,
}

/// What a long way needs to be switched on or off, and what it costs otherwise.
const SWITCHES: [(&str, u64, &str); 3] = [
    (
        "net.ipv4.tcp_slow_start_after_idle",
        0,
        "a connection that was quiet for a moment starts slowly again, as if it were new: over 220 ms that takes seconds",
    ),
    (
        "net.ipv4.tcp_window_scaling",
        1,
        "no more than 64 KiB are ever on their way: 0.3 MB/s over 220 ms",
    ),
    (
        "net.ipv4.tcp_moderate_rcvbuf",
        1,
        "receive buffers do not grow with the way",
    ),
];

impl Machine {
    fn asked(options: &SocketOptions) -> Self {
        let pages = number("net.ipv4.tcp_mem", 1);
        let page = rustix::param::page_size() as u64;
        let mut machine = Self {
            available: words("net.ipv4.tcp_available_congestion_control"),
            allowed: words("net.ipv4.tcp_allowed_congestion_control"),
            administrator: capabilities(None)
                .is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN)),
            largest_send: number("net.ipv4.tcp_wmem", 2),
            largest_receive: number("net.ipv4.tcp_rmem", 2),
            pressure: pages.map(|pages| pages.saturating_mul(page)),
            switches: Vec::new(),
            ..Self::default()
        };
        for (key, right, _) in SWITCHES {
            if number(key, 0).is_some_and(|value| value != right) {
                machine.switches.push((key, right));
            }
        }
        // A socket that cannot be made tells nothing: then all that was read above still holds.
        if let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, None) {
            let sizes = SocketOptions {
                congestion: None,
                source: None,
                ..options.clone()
            };
            if shape(&socket, &sizes).is_ok() {
                machine.send_buffer = socket.send_buffer_size().ok();
                machine.receive_buffer = socket.recv_buffer_size().ok();
            }
        }
        machine.source = source_refused(options);
        machine
    }

    fn findings(&self, options: &SocketOptions) -> Vec<String> {
        let mut found = Vec::new();
        found.extend(self.congestion(options));
        found.extend(self.buffer(
            ("send_buffer", options.send_buffer, self.send_buffer),
            "net.core.wmem_max",
        ));
        found.extend(self.buffer(
            (
                "receive_buffer",
                options.receive_buffer,
                self.receive_buffer,
            ),
            "net.core.rmem_max",
        ));
        found.extend(self.source.clone());
        if options.wan {
            self.long_way(options, &mut found);
        }
        found
    }

    fn congestion(&self, options: &SocketOptions) -> Option<String> {
        let name = &**options.congestion.as_ref()?;
        let has = |list: &[String]| list.iter().any(|one| one == name);
        let wish = match is_wish(options) {
            true => "; until then the system's serves",
            false => "",
        };
        if !has(&self.available) {
            let list = self.available.join(" ");
            let refused = refused(name, rustix::io::Errno::NOENT);
            return Some(format!("{refused} (it has {list}){wish}"));
        }
        if has(&self.allowed) {
            return None;
        }
        let list = self.allowed.join(" ");
        if self.administrator {
            return Some(format!(
                "congestion control {name:?} is allowed to this process by CAP_NET_ADMIN alone, which the service has not: add it to \
                 net.ipv4.tcp_allowed_congestion_control (now: {list}){wish}"
            ));
        }
        let refused = refused(name, rustix::io::Errno::PERM);
        Some(format!("{refused} (now: {list}){wish}"))
    }

    fn buffer(
        &self,
        (key, wanted, got): (&str, Option<usize>, Option<usize>),
        bound: &str,
    ) -> Option<String> {
        let (wanted, got) = (wanted?, got?);
        // An odd byte is not the kernel's.
        (got < wanted - wanted % 2).then(|| {
            format!(
                "{key} {} is cut to {}: set {bound} to {} (half of it: the kernel doubles what it is asked for), or write \"auto\"",
                size_text(wanted as u64),
                size_text(got as u64),
                wanted.div_ceil(2)
            )
        })
    }

    /// What holds back the one flow that the preset is meant for.
    fn long_way(&self, options: &SocketOptions, found: &mut Vec<String>) {
        let wanted = wan::BUFFER;
        let milliseconds = wan::RTT.as_millis();
        let largest = [
            ("tcp_wmem", options.send_buffer, self.largest_send, "sends"),
            (
                "tcp_rmem",
                options.receive_buffer,
                self.largest_receive,
                "receives",
            ),
        ];
        for (key, own, largest, does) in largest {
            if let (None, Some(largest)) = (own, largest)
                && largest < 2 * wan::IN_FLIGHT
            {
                let rate = largest as f64 / wan::RTT.as_secs_f64() / 1e6;
                found.push(format!(
                    "one connection {does} at most {rate:.0} MB/s over {milliseconds} ms ({:.1} Gbit/s), and may do half of it: set the last \
                     number of net.ipv4.{key} to {wanted} (now {largest}) for 5 Gbit/s, as the sysctl file does that comes with tollgate",
                    rate / 125.0
                ));
            }
        }
        if let Some(pressure) = self.pressure
            && pressure < 2 * wan::IN_FLIGHT
        {
            found.push(format!(
                "all TCP sockets together may hold {} MB before the kernel lets no buffer grow (second number of net.ipv4.tcp_mem), one flow \
                 of 5 Gbit/s over {milliseconds} ms up to {}: take a machine with more memory, or raise it",
                pressure / 1_000_000,
                2 * wan::IN_FLIGHT / 1_000_000
            ));
        }
        for (key, right) in &self.switches {
            let costs = SWITCHES.iter().find(|(known, ..)| known == key);
            let costs = costs.map_or("", |(_, _, costs)| costs);
            found.push(format!("{costs}: set {key} to {right}"));
        }
    }
}

/// What happens to a connection that is to come from the source.
fn source_refused(options: &SocketOptions) -> Option<String> {
    let source = options.source?;
    let only = SocketOptions {
        source: Some(source),
        ..SocketOptions::default()
    };
    let domain = match source.to_canonical().is_ipv4() {
        true => Domain::IPV4,
        false => Domain::IPV6,
    };
    let tried = Socket::new(domain, Type::STREAM, None).and_then(|socket| shape(&socket, &only));
    tried.err().map(|error| match error.kind() {
        io::ErrorKind::AddrNotAvailable => format!(
            "{error}: connections to upstream addresses of its family will fail until it is; `ip address` lists those that are"
        ),
        _ => format!("source {source}: {error}"),
    })
}

/// A key of sysctl(8), as it is in this network namespace; nothing where the kernel has none.
fn sysctl(key: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/"))).ok()
}

fn words(key: &str) -> Vec<String> {
    let text = sysctl(key).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The `nth` number of a key, from 0.
fn number(key: &str, nth: usize) -> Option<u64> {
    sysctl(key)?.split_whitespace().nth(nth)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustix::net::sockopt::set_tcp_congestion;

    use super::*;

    /// Whether the kernel lets this process choose a congestion control.
    fn may_choose(name: &str) -> bool {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        set_tcp_congestion(&socket, name).is_ok()
    }

    /// One that the preset has nothing against.
    fn good() -> Machine {
        let list = |names: &str| names.split(' ').map(str::to_owned).collect();
        Machine {
            available: list("reno cubic bbr"),
            allowed: list("reno bbr"),
            largest_send: Some(wan::BUFFER),
            largest_receive: Some(wan::BUFFER),
            pressure: Some(4 << 30),
            ..Machine::default()
        }
    }

    fn ordered(congestion: &str) -> SocketOptions {
        SocketOptions {
            congestion: Some(Arc::from(congestion)),
            ..SocketOptions::default()
        }
    }

    #[track_caller]
    fn assert_one(found: &[String], parts: &[&str]) {
        assert_eq!(found.len(), 1, "{found:#?}");
        for part in parts {
            assert!(found[0].contains(part), "{part:?} in {found:#?}");
        }
    }

    #[test]
    fn nothing_chosen_is_nothing_found() {
        assert!(findings(&SocketOptions::default()).is_empty());
        let found = good().findings(&wan());
        assert!(found.is_empty(), "{found:#?}");
    }

    #[test]
    fn congestion_control_is_missing_or_forbidden_or_for_the_administrator() {
        let found = good().findings(&ordered("vegas"));
        assert_one(&found, &["modprobe tcp_vegas", "it has reno cubic bbr"]);
        let found = good().findings(&ordered("cubic"));
        assert_one(&found, &["not allowed", "now: reno bbr"]);
        let root = Machine {
            administrator: true,
            ..good()
        };
        assert_one(&root.findings(&ordered("cubic")), &["CAP_NET_ADMIN alone"]);
        assert!(root.findings(&ordered("bbr")).is_empty());
        let without = Machine {
            available: vec!["cubic".to_owned()],
            ..good()
        };
        let found = without.findings(&wan());
        assert_one(&found, &["modprobe tcp_bbr", "the system's serves"]);
    }

    #[test]
    fn a_buffer_that_was_cut_says_to_what_and_what_to_set() {
        let machine = Machine {
            send_buffer: Some(425_984),
            receive_buffer: Some(4 << 20),
            ..good()
        };
        let options = SocketOptions {
            send_buffer: Some(4 << 20),
            receive_buffer: Some(4 << 20),
            ..SocketOptions::default()
        };
        let found = machine.findings(&options);
        assert_one(
            &found,
            &["4MiB is cut to 416KiB", "net.core.wmem_max to 2097152"],
        );
    }

    #[test]
    fn a_long_way_needs_room_and_the_switches() {
        let machine = Machine {
            largest_send: Some(4 << 20),
            largest_receive: Some(6 << 20),
            pressure: Some(100_000_000),
            switches: vec![("net.ipv4.tcp_slow_start_after_idle", 0)],
            ..good()
        };
        let found = machine.findings(&wan());
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].contains("sends at most 19 MB/s"), "{found:#?}");
        assert!(
            found[0].contains("net.ipv4.tcp_wmem to 301989888"),
            "{found:#?}"
        );
        assert!(found[1].contains("receives at most 29 MB/s"), "{found:#?}");
        assert!(found[2].contains("may hold 100 MB"), "{found:#?}");
        assert!(
            found[3].contains("tcp_slow_start_after_idle to 0"),
            "{found:#?}"
        );
        // Without the preset nobody has said that the way is long.
        assert!(machine.findings(&ordered("bbr")).is_empty());
        // A size that was written stands in place of the kernel's.
        let own = SocketOptions {
            send_buffer: Some(1 << 20),
            receive_buffer: Some(1 << 20),
            ..wan()
        };
        assert_eq!(machine.findings(&own).len(), 2);
    }

    #[test]
    fn this_machine_is_asked() {
        let options = SocketOptions {
            congestion: Some(Arc::from("nonesuch")),
            send_buffer: Some(1 << 30),
            source: Some("192.0.2.1".parse().unwrap()),
            ..SocketOptions::default()
        };
        let found = findings(&options);
        assert_eq!(found.len(), 3, "{found:#?}");
        assert!(found[1].contains("is cut to"), "{found:#?}");
        assert!(
            found[2].contains("192.0.2.1 is no address of this machine"),
            "{found:#?}"
        );
        let machine = Machine::asked(&options);
        assert!(machine.largest_send.is_some() && machine.pressure.is_some());
        // What the lists say is what a try says.
        for name in machine.available.clone() {
            let may = machine.administrator || machine.allowed.contains(&name);
            assert_eq!(may_choose(&name), may, "{name}");
        }
    }
}
