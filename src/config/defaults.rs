//! What holds where nothing is configured, in one table. The reason stands beside each number.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

/// `[admin] bind`: local, because nothing asks for a password there.
pub const ADMIN_BIND: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9900));

/// `[drain] accept_for`: new connections keep arriving for about two minutes after a target leaves its NLB.
pub const DRAIN_ACCEPT_FOR: Duration = Duration::from_secs(150);
/// `[drain] deadline`: NLB's own deregistration delay by default.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(300);
/// `[drain] spread`: this part of the deadline, so that what is closed does not come back all at once.
pub const DRAIN_SPREAD: u32 = 5;

/// `[session] idle_timeout`: far above the 350 s after which NLB forgets a silent connection: keepalive has kept it alive
/// until then, so that silence is the application's own.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);
/// `[session] half_close_timeout`.
pub const HALF_CLOSE_TIMEOUT: Duration = Duration::from_secs(60);
/// `[session] keepalive_idle`: well below NLB's 350 s, so that a quiet connection stays in its flow table.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// `[session] keepalive_interval`.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// `[session] keepalive_probes`: a vanished side is noticed after 60 + 4 × 15 s where `user_timeout` is off. With it on, Linux
/// goes by that alone (tcp(7), TCP_USER_TIMEOUT).
pub const KEEPALIVE_PROBES: u32 = 4;
/// `[session] user_timeout`.
pub const USER_TIMEOUT: Duration = Duration::from_secs(300);

/// `[[listener]] max_header`, in bytes: far more than NLB writes (at most a few hundred).
pub const MAX_HEADER: usize = 4096;
/// `[[listener]] first_byte_timeout`: above NLB's idle timeout of 350 s, as it may send the header with the first payload.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(360);
/// `[[listener]] header_timeout`.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// `[[listener]] max_pending`.
pub const MAX_PENDING: usize = 4096;
/// `[[listener]] max_sessions`.
pub const MAX_SESSIONS: usize = 100_000;

/// `wait_for`: a client's own timeout is hardly shorter.
pub const WAIT_FOR: Duration = Duration::from_secs(2);
/// `max_waiting` of an endpoint or a listener.
pub const MAX_WAITING: usize = 64;
/// `[limits] max_waiting`: two descriptors each, of those that sessions could have.
pub const MAX_WAITING_IN_ALL: usize = 1024;

/// `[[upstream]] connect_timeout`: two lost SYNs (retried after 1 and 3 s) are survived.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// `[[upstream]] connect_deadline`: three addresses that do not answer.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// `[[upstream]] min_ttl`: a TTL of 0 must not ask without end.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// `[[upstream]] max_ttl`.
pub const MAX_TTL: Duration = Duration::from_secs(300);

/// `[accounts] max`.
pub const MAX_ACCOUNTS: usize = 50_000;
/// `[metrics] max_endpoints`: what a Prometheus scrapes without pain.
pub const MAX_METRIC_ENDPOINTS: usize = 1000;

/// `[resolver] queries_per_second`: the VPC resolver drops above 1024 packets/s per interface, which may have other users.
pub const QUERIES_PER_SECOND: std::num::NonZeroU32 = std::num::NonZeroU32::new(200).unwrap();
/// `[[listener]] peek_size`: a ClientHello with post-quantum keys takes 2 KiB, one full of tickets 16, an HTTP head with cookies 8.
pub const PEEK_SIZE: usize = 32 * 1024;
/// `[[listener]] peek_timeout`.
pub const PEEK_TIMEOUT: Duration = Duration::from_secs(5);
/// `[[upstream]] next_try_after`: RFC 8305, section 5, Connection Attempt Delay.
pub const NEXT_TRY_AFTER: Duration = Duration::from_millis(250);
/// `[[upstream]] retry_budget`: enough for a dead zone of three before it is known, too little to double the load on what is overloaded.
pub const RETRY_BUDGET: u32 = 50;
/// `[[upstream]] vanish_deadline`: as long as a load balancer gives its own connections by default.
pub const VANISH_DEADLINE: Duration = Duration::from_secs(300);
/// `[[upstream]] vanish_spread`.
pub const VANISH_SPREAD: Duration = Duration::from_secs(30);
/// `failover.below`, in percent.
pub const FAILOVER_BELOW: u32 = 50;
/// `failover.back_above`, in percent.
pub const FAILOVER_BACK_ABOVE: u32 = 80;
/// `failover.back_after`.
pub const FAILOVER_BACK_AFTER: Duration = Duration::from_secs(30);
/// `eject.after`: one lost SYN in a thousand must not eject anybody.
pub const EJECT_AFTER: u32 = 3;
/// `eject.pause`.
pub const EJECT_PAUSE: Duration = Duration::from_secs(10);
/// `eject.longest`.
pub const EJECT_LONGEST: Duration = Duration::from_secs(300);
/// `eject.panic_below`, in percent: one of three zones may carry what is left, one of four may not.
pub const PANIC_BELOW: u32 = 30;
/// `[[upstream]] slow_start`.
pub const SLOW_START: Duration = Duration::from_secs(10);
/// `health.interval`.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// `health.timeout`: the longest way between Regions three times, and two lost SYNs.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(4);
/// `health.rise`.
pub const HEALTH_RISE: u32 = 2;
/// `health.fall`.
pub const HEALTH_FALL: u32 = 3;
/// `ahead.min`.
pub const AHEAD_MIN: usize = 1;
/// `ahead.max`.
pub const AHEAD_MAX: usize = 32;
/// `ahead.max_age`.
pub const AHEAD_MAX_AGE: Duration = Duration::from_secs(10);
/// `health.path`.
pub const HEALTH_PATH: &str = "/";
/// `health.status`: as an NLB judges its own targets.
pub const HEALTH_STATUS: (u16, u16) = (200, 399);
/// `[accounts] idle_after`.
pub const ACCOUNT_IDLE_AFTER: Duration = Duration::from_secs(3600);
/// `[ledger] interval`: what a power cut costs at most.
pub const LEDGER_INTERVAL: Duration = Duration::from_secs(10);
/// `[ledger] keep`: a year, and time to close it.
pub const LEDGER_KEEP: Duration = Duration::from_secs(400 * 24 * 3600);
/// `[audit] interval`.
pub const AUDIT_INTERVAL: Duration = Duration::from_secs(300);
/// `[audit] rotate_size`.
pub const AUDIT_ROTATE_SIZE: u64 = 256 * 1024 * 1024;
/// `[audit] rotate_age`.
pub const AUDIT_ROTATE_AGE: Duration = Duration::from_secs(24 * 3600);
