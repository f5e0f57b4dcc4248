//! What a DNS answer says, and which of its addresses are taken.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::IpNet;

use super::addresses::{Kind, MOST_ADDRESSES};

/// Most aliases followed from one name.
const MOST_ALIASES: usize = 16;

/// How many addresses a note names one by one.
const NAMED_IN_NOTES: usize = 3;

/// What an answer says of the name that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Its addresses, and for how long they are good: the least TTL of them and of the aliases that led to them.
    Addresses(Vec<IpAddr>, Duration),
    /// It is an alias for a name of which the answer says nothing: that is to be asked for.
    Alias(Name),
    /// It has no address of this family; how long that is good, if the answer says so.
    NoAddress(Option<Duration>),
    /// There is no such name.
    NoName(Option<Duration>),
}

/// Why a name's aliases lead nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// One of them leads back.
    #[error("its aliases go in a circle: {0}")]
    Circle(String),
    /// There are too many.
    #[error("more than {MOST_ALIASES} aliases, one behind the other")]
    TooMany,
}

/// A name, and the aliases followed from it, over as many answers as it takes.
#[derive(Debug)]
pub struct Chain {
    names: Vec<Name>,
    ttl: Duration,
}

impl Chain {
    /// Begins at `name`.
    #[must_use]
    pub fn new(name: Name) -> Self {
        Self {
            names: vec![name],
            ttl: Duration::MAX,
        }
    }

    /// Goes on as far as `message` leads, in whatever order its records come. Records of names that it does not come by are none of ours.
    ///
    /// # Errors
    /// [`AliasError`].
    pub fn follow(&mut self, message: &Message, kind: Kind) -> Result<Said, AliasError> {
        let wanted = record_type(kind);
        let begin = self.names.len();
        while let Some(at) = self.names.last() {
            let of_this_name =
                |record: &&Record| record.dns_class == DNSClass::IN && record.name == *at;
            let mut addresses = Vec::new();
            let mut alias = None;
            for record in message.answers.iter().filter(of_this_name) {
                match &record.data {
                    RData::CNAME(to) => alias = Some((to.0.clone(), lives(record))),
                    data if record.record_type() == wanted => {
                        addresses.extend(data.ip_addr());
                        self.ttl = self.ttl.min(lives(record));
                    }
                    _ => {}
                }
            }
            if !addresses.is_empty() {
                return Ok(Said::Addresses(addresses, self.ttl));
            }
            let Some((to, lives)) = alias else { break };
            self.ttl = self.ttl.min(lives);
            self.push(to)?;
        }
        let followed = self.names.len() > begin;
        let good_for = negative_ttl(message);
        Ok(match self.names.last() {
            _ if message.response_code == ResponseCode::NXDomain => Said::NoName(good_for),
            Some(to) if followed && good_for.is_none() => Said::Alias(to.clone()),
            _ => Said::NoAddress(good_for),
        })
    }

    fn push(&mut self, to: Name) -> Result<(), AliasError> {
        let circle = self.names.contains(&to);
        self.names.push(to);
        if circle {
            let names = self.names.iter().map(shown);
            return Err(AliasError::Circle(names.collect::<Vec<_>>().join(" → ")));
        }
        if self.names.len() > MOST_ALIASES + 1 {
            return Err(AliasError::TooMany);
        }
        Ok(())
    }
}

/// A TTL of 2^31 and above is none (RFC 2181, 8).
fn lives(record: &Record) -> Duration {
    let seconds = i32::try_from(record.ttl).unwrap_or(0);
    Duration::from_secs(u64::from(seconds.unsigned_abs()))
}

/// How long it is good that something is not there (RFC 2308, 5).
fn negative_ttl(message: &Message) -> Option<Duration> {
    let mut authorities = message.authorities.iter();
    authorities.find_map(|record| match &record.data {
        RData::SOA(soa) => {
            let minimum = Duration::from_secs(u64::from(soa.minimum));
            Some(lives(record).min(minimum))
        }
        _ => None,
    })
}

/// The type of a family's records.
#[must_use]
pub fn record_type(kind: Kind) -> RecordType {
    match kind {
        Kind::V4 => RecordType::A,
        Kind::V6 => RecordType::AAAA,
    }
}

/// A name as people write it; whatever is not printable is escaped.
#[must_use]
pub fn shown(name: &Name) -> String {
    let text = name.to_ascii();
    match text.strip_suffix('.') {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => text,
    }
}

/// Which addresses are taken for one target.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Special-purpose networks that are allowed all the same.
    pub allowed: &'a [IpNet],
    /// Addresses of the relay's own listeners.
    pub own: &'a [SocketAddr],
    /// The target's port.
    pub port: u16,
    /// Whether addresses of IPv4 are wanted.
    pub ipv4: bool,
}

/// Who says that a name has an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The operator: may name any address but an own listener's.
    Hosts,
    /// Anyone who can write into a zone.
    Dns,
}

impl Rules<'_> {
    /// The addresses that are taken, each once, and what was left out and why, if anything was.
    #[must_use]
    pub fn sift(&self, addresses: Vec<IpAddr>, source: Source) -> (Vec<IpAddr>, Option<String>) {
        let [mut special, mut loops, mut mapped] = [const { BTreeSet::<IpAddr>::new() }; 3];
        let mut seen = BTreeSet::new();
        let mut taken = Vec::new();
        for written in addresses {
            let address = written.to_canonical(); // ::ffff:a.b.c.d is dialled as what it stands for
            if !seen.insert(address) {
                continue;
            }
            if source == Source::Dns && !may_be_used(address, self.allowed) {
                special.insert(address);
            } else if address != written && !self.ipv4 {
                mapped.insert(address);
            } else if is_own(self.own, SocketAddr::new(address, self.port)) {
                loops.insert(address);
            } else {
                taken.push(address);
            }
        }
        let port = self.port;
        let mut notes = Vec::new();
        let mut note = |left_out: &BTreeSet<IpAddr>, why: &str| {
            if !left_out.is_empty() {
                notes.push(format!("left out {}: {why}", some_of(left_out)));
            }
        };
        note(
            &special,
            "loopback, link-local, multicast or unspecified, see allow_addresses",
        );
        note(
            &loops,
            &format!("port {port} there is this relay's own listener, a loop"),
        );
        note(&mapped, "IPv4, which resolver.family does not ask for");
        if taken.len() > MOST_ADDRESSES {
            notes.push(format!(
                "more than {MOST_ADDRESSES} addresses in one answer, {MOST_ADDRESSES} of them are used"
            ));
        }
        let notes = (!notes.is_empty()).then(|| notes.join("; "));
        (taken, notes)
    }
}

/// The first few of them; the least ones, so that another order is no other text.
fn some_of(addresses: &BTreeSet<IpAddr>) -> String {
    let named = addresses.iter().take(NAMED_IN_NOTES);
    let named = named.map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    match addresses.len().saturating_sub(NAMED_IN_NOTES) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// Whether a DNS answer may be used: nobody's load balancer lives in loopback, link-local (where the metadata service is),
/// multicast or unspecified space, so a name that points there is a mistake or an attack, unless the operator allows it.
#[must_use]
pub fn may_be_used(address: IpAddr, allowed: &[IpNet]) -> bool {
    let special_v4 = |v4: Ipv4Addr| {
        v4.is_loopback()
            || v4.is_link_local()
            || v4.is_multicast()
            || v4.is_broadcast()
            || v4.octets()[0] == 0
    };
    let special = match address.to_canonical() {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => {
            const METADATA: Ipv6Addr = Ipv6Addr::new(0xFD00, 0xEC2, 0, 0, 0, 0, 0, 0x254);
            // Behind NAT64 (RFC 6052, section 2.1) or as an IPv4-compatible address (RFC 4291, section 2.5.5.1) it is an IPv4 address all
            // the same.
            let [a, b, c, d, e, f, ..] = v6.segments();
            let embeds = matches!(
                [a, b, c, d, e, f],
                [0x64, 0xFF9B, 0, 0, 0, 0] | [0, 0, 0, 0, 0, 0]
            );
            let [.., w, x, y, z] = v6.octets();
            let embedded = embeds && special_v4(Ipv4Addr::new(w, x, y, z));
            embedded
                || v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_multicast()
                || v6.is_unspecified()
                || v6 == METADATA
        }
    };
    !special
        || allowed
            .iter()
            .any(|net| net.contains(&address.to_canonical()))
}

/// Whether `address` leads to one of `listeners`: the same address, or any address of this machine where one listens on all.
fn is_own(listeners: &[SocketAddr], address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let mut same_port = listeners
        .iter()
        .filter(|listener| listener.port() == address.port());
    same_port.any(|listener| {
        let on = listener.ip().to_canonical();
        on == ip || (on.is_unspecified() && is_local(ip))
    })
}

/// Only an address of this machine can be bound to. Where that cannot be found out it is taken for one: rather no answer than a loop.
fn is_local(ip: IpAddr) -> bool {
    match UdpSocket::bind((ip, 0)) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::AddrNotAvailable,
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::{MessageType, OpCode};
    use hickory_resolver::proto::rr::rdata::{A, CNAME, SOA};

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn name(text: &str) -> Name {
        Name::from_ascii(format!("{text}.")).unwrap()
    }

    fn a(at: &str, last: u8, ttl: u32) -> Record {
        Record::from_rdata(name(at), ttl, RData::A(A::new(10, 0, 0, last)))
    }

    fn alias(at: &str, to: &str, ttl: u32) -> Record {
        Record::from_rdata(name(at), ttl, RData::CNAME(CNAME(name(to))))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let soa = SOA::new(name("ns"), name("admin"), 1, 1, 1, 1, minimum);
        Record::from_rdata(name("example"), ttl, RData::SOA(soa))
    }

    fn message(answers: &[Record]) -> Message {
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        message.answers = answers.to_vec();
        message
    }

    fn addresses(last: &[u8], ttl: u32) -> Result<Said, AliasError> {
        let addresses = last.iter().map(|n| IpAddr::from([10, 0, 0, *n]));
        Ok(Said::Addresses(addresses.collect(), ttl * S))
    }

    fn said(answers: &[Record]) -> Result<Said, AliasError> {
        Chain::new(name("a")).follow(&message(answers), Kind::V4)
    }

    #[test]
    fn aliases_are_followed_in_whatever_order_they_come_and_the_least_ttl_counts() {
        let records = [
            alias("a", "b", 300),
            alias("b", "c", 7),
            a("c", 1, 60),
            a("c", 2, 50),
        ];
        assert_eq!(said(&records), addresses(&[1, 2], 7));
        let [first, second, third, fourth] = records;
        assert_eq!(said(&[third, fourth, second, first]), addresses(&[1, 2], 7));
        assert_eq!(
            said(&[alias("a", "b", 300), a("b", 1, 20)]),
            addresses(&[1], 20)
        );
    }

    #[test]
    fn names_differ_in_case_only_are_the_same() {
        assert_eq!(
            said(&[alias("A", "B", 9), a("b", 1, 20)]),
            addresses(&[1], 9)
        );
    }

    #[test]
    fn records_that_nobody_asked_for_are_none_of_ours() {
        assert_eq!(
            said(&[a("evil", 66, 60), a("a", 1, 60)]),
            addresses(&[1], 60)
        );
        assert_eq!(said(&[a("evil", 66, 60)]), Ok(Said::NoAddress(None)));
        let other = [alias("evil", "a", 0), a("a", 1, 60)];
        assert_eq!(said(&other), addresses(&[1], 60));
    }

    #[test]
    fn an_absurd_ttl_is_none() {
        assert_eq!(said(&[a("a", 1, u32::MAX)]), addresses(&[1], 0));
        assert_eq!(
            said(&[a("a", 1, i32::MAX as u32)]),
            addresses(&[1], i32::MAX as u32)
        );
    }

    #[test]
    fn an_alias_without_its_name_is_to_be_asked_for_and_its_ttl_is_kept() {
        let mut chain = Chain::new(name("a"));
        let first = chain.follow(&message(&[alias("a", "b", 5)]), Kind::V4);
        assert_eq!(first, Ok(Said::Alias(name("b"))));
        let second = chain.follow(&message(&[a("b", 1, 60)]), Kind::V4);
        assert_eq!(second, addresses(&[1], 5));
    }

    #[test]
    fn a_circle_of_aliases_is_named() {
        let circle = said(&[alias("a", "b", 5), alias("b", "c", 5), alias("c", "a", 5)]);
        let text = circle.unwrap_err().to_string();
        assert_eq!(text, "its aliases go in a circle: a → b → c → a");
        let mut chain = Chain::new(name("a"));
        let first = chain.follow(&message(&[alias("a", "b", 5)]), Kind::V4);
        assert_eq!(first, Ok(Said::Alias(name("b"))), "over two answers");
        let second = chain.follow(&message(&[alias("b", "a", 5)]), Kind::V4);
        assert_eq!(second, Err(AliasError::Circle("a → b → a".to_owned())));
    }

    #[test]
    fn a_chain_without_end_is_left() {
        let names: Vec<String> = (0..100).map(|n| format!("n{n}")).collect();
        let long = |n: usize| {
            let aliases = names.windows(2).take(n);
            let mut records: Vec<_> = aliases.map(|pair| alias(&pair[0], &pair[1], 5)).collect();
            records.push(a(&names[n], 1, 5));
            Chain::new(name("n0")).follow(&message(&records), Kind::V4)
        };
        assert_eq!(long(MOST_ALIASES), addresses(&[1], 5));
        assert_eq!(long(MOST_ALIASES + 1), Err(AliasError::TooMany));
    }

    #[test]
    fn what_is_not_there_is_good_for_as_long_as_the_zone_says() {
        let mut empty = message(&[alias("a", "b", 5)]);
        empty.authorities.push(soa(900, 60));
        let follow = |message: &Message| Chain::new(name("a")).follow(message, Kind::V4);
        assert_eq!(follow(&empty), Ok(Said::NoAddress(Some(60 * S))));
        empty.metadata.response_code = ResponseCode::NXDomain;
        assert_eq!(follow(&empty), Ok(Said::NoName(Some(60 * S))));
        empty.authorities = vec![soa(30, 60)];
        assert_eq!(follow(&empty), Ok(Said::NoName(Some(30 * S))));
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    const RULES: Rules<'_> = Rules {
        allowed: &[],
        own: &[],
        port: 443,
        ipv4: true,
    };

    #[test]
    fn an_answer_that_leads_back_here_is_a_loop() {
        let own = ["0.0.0.0:8443", "10.0.0.1:9000"].map(|address| address.parse().unwrap());
        for (address, looped) in [
            ("127.0.0.1:8443", true),
            ("[::ffff:127.0.0.1]:8443", true),
            ("[::ffff:10.0.0.1]:9000", true),
            ("127.0.0.1:9443", false),
            ("192.0.2.1:8443", false),
            ("10.0.0.1:9000", true),
            ("10.0.0.2:9000", false),
        ] {
            assert_eq!(is_own(&own, address.parse().unwrap()), looped, "{address}");
        }
    }

    #[test]
    fn a_loop_among_other_addresses_is_left_out_and_named() {
        let own = ["10.0.0.1:9000".parse().unwrap()];
        let rules = Rules {
            own: &own,
            port: 9000,
            ..RULES
        };
        for source in [Source::Dns, Source::Hosts] {
            let (taken, note) = rules.sift(ips(&["10.0.0.2", "10.0.0.1", "10.0.0.3"]), source);
            assert_eq!(taken, ips(&["10.0.0.2", "10.0.0.3"]));
            let expected =
                "left out 10.0.0.1: port 9000 there is this relay's own listener, a loop";
            assert_eq!(note.as_deref(), Some(expected));
        }
        let elsewhere = Rules {
            port: 9001,
            ..rules
        };
        let (taken, note) = elsewhere.sift(ips(&["10.0.0.1"]), Source::Dns);
        assert_eq!((taken, note), (ips(&["10.0.0.1"]), None));
    }

    #[test]
    fn the_operators_own_word_is_not_sifted_but_for_loops() {
        let (taken, note) = RULES.sift(ips(&["127.0.0.1"]), Source::Hosts);
        assert_eq!((taken, note), (ips(&["127.0.0.1"]), None));
        let (taken, note) = RULES.sift(ips(&["127.0.0.1"]), Source::Dns);
        assert!(taken.is_empty());
        assert!(note.unwrap().starts_with("left out 127.0.0.1: loopback"));
    }

    #[test]
    fn another_order_is_no_other_note() {
        let mut addresses: Vec<IpAddr> = (1..=9).map(|n| IpAddr::from([127, 0, 0, n])).collect();
        let (_, note) = RULES.sift(addresses.clone(), Source::Dns);
        let named = "left out 127.0.0.1, 127.0.0.2, 127.0.0.3 and 6 more: loopback";
        assert!(note.as_ref().unwrap().starts_with(named), "{note:?}");
        addresses.rotate_left(4);
        assert_eq!(RULES.sift(addresses, Source::Dns).1, note);
    }

    #[test]
    fn an_ipv4_address_behind_nat64_is_judged_as_what_it_is() {
        for (address, taken) in [
            ("64:ff9b::a9fe:a9fe", false),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b::a00:1", true),
            ("::7f00:1", false),
            ("2001:db8::7f00:1", true),
        ] {
            assert_eq!(
                may_be_used(address.parse().unwrap(), &[]),
                taken,
                "{address}"
            );
        }
    }

    #[test]
    fn a_mapped_address_is_what_it_stands_for() {
        let mapped = ips(&["::ffff:10.0.0.1", "::ffff:127.0.0.1", "fd00::1"]);
        let (taken, note) = RULES.sift(mapped.clone(), Source::Dns);
        assert_eq!(taken, ips(&["10.0.0.1", "fd00::1"]));
        assert!(note.unwrap().starts_with("left out 127.0.0.1: loopback"));
        let only_six = Rules {
            ipv4: false,
            ..RULES
        };
        let (taken, note) = only_six.sift(mapped, Source::Hosts);
        assert_eq!(taken, ips(&["fd00::1"]));
        let expected = "left out 10.0.0.1, 127.0.0.1: IPv4, which resolver.family does not ask for";
        assert_eq!(note.as_deref(), Some(expected));
    }

    #[test]
    fn a_flood_is_said_whatever_its_size() {
        let flood = |n: u32| {
            let addresses = (0..n).map(|n| IpAddr::from((0x0A00_0000 + n).to_be_bytes()));
            RULES.sift(addresses.collect(), Source::Dns)
        };
        let (taken, note) = flood(4000);
        assert_eq!(
            taken.len(),
            4000,
            "which of them stay is decided by who knows the last ones"
        );
        assert_eq!(note, flood(3999).1);
        assert!(note.unwrap().starts_with("more than 256 addresses"));
        assert_eq!(flood(256).1, None);
    }

    #[test]
    fn special_addresses_need_a_word_from_the_operator() {
        for ip in [
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.1",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
        ] {
            assert!(!may_be_used(ip.parse().unwrap(), &[]), "{ip}");
        }
        for ip in ["10.1.2.3", "52.1.2.3", "fd12::1", "2600::1"] {
            assert!(may_be_used(ip.parse().unwrap(), &[]), "{ip}");
        }
        assert!(may_be_used(
            "127.0.0.1".parse().unwrap(),
            &["127.0.0.0/8".parse().unwrap()]
        ));
    }
}
