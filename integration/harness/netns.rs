//! Hosts and wires: a [`Lab`] owns network namespaces ([`Host`]) and the links between them.

use std::{
    fs,
    io::Write,
    panic,
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::{
    runtime::{self, Handle},
    sync::oneshot,
    task::JoinHandle,
};

use super::{
    BOUND,
    sockets::{self, Socket},
    wan::{Shape, Wan},
};

/// A closed world of hosts. Dropping it stops what runs on them and removes them.
///
/// Each lab has namespaces of its own, so tests run beside each other and may all use the same addresses.
#[derive(Debug)]
pub struct Lab {
    name: String,
    hosts: Mutex<Vec<Host>>,
}

impl Lab {
    /// An empty lab. `name` shows up in the names of threads and namespaces.
    pub fn new(name: &str) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("{number}-{name}"),
            hosts: Mutex::default(),
        }
    }

    /// A new host: a network namespace with lo up and nothing else in it.
    #[track_caller]
    pub fn host(&self, name: &str) -> Host {
        let host = Host::start(format!("{}-{name}", self.name));
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.push(host.clone());
        host
    }

    /// A host that passes packets on between its links.
    #[track_caller]
    pub fn router(&self, name: &str) -> Host {
        let host = self.host(name);
        host.sysctl("net.ipv4.ip_forward", "1");
        host.sysctl("net.ipv6.conf.all.forwarding", "1");
        // Whoever it cannot help learns that each time, not once a second.
        host.sysctl("net.ipv4.icmp_ratelimit", "0");
        host
    }

    /// A wire between two hosts, each with its address on it (`"10.0.0.1/24"`). The interfaces are named `eth0`, `eth1`… per host.
    #[track_caller]
    pub fn veth(&self, left: (&Host, &str), right: (&Host, &str)) -> Veth {
        let ends = [left, right].map(|(host, _)| (host.clone(), host.next_interface("eth")));
        let [(a, a_name), (b, b_name)] = &ends;
        run_ip(&format!(
            "link add {a_name} netns {} type veth peer name {b_name} netns {}",
            a.namespace(),
            b.namespace()
        ));
        for ((host, interface), (_, address)) in ends.iter().zip([left, right]) {
            host.address(interface, address);
            host.ip(&format!("link set {interface} up"));
        }
        Veth { ends }
    }

    /// A long-distance link between two hosts. The interfaces are named `wan0`, `wan1`… per host.
    #[track_caller]
    pub fn wan(&self, left: (&Host, &str), right: (&Host, &str), shape: Shape) -> Wan {
        Wan::start(left, right, shape)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let hosts = self.hosts.get_mut().unwrap_or_else(PoisonError::into_inner);
        for host in hosts.drain(..) {
            host.stop();
        }
    }
}

/// One network namespace, with a thread in it that runs a tokio runtime. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    namespace: String,
    runtime: Handle,
    interfaces: AtomicU32,
    thread: Mutex<Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>>,
}

impl Host {
    #[track_caller]
    fn start(namespace: String) -> Self {
        run_ip(&format!("netns add {namespace}"));
        let (ready, runtime) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let path = format!("/run/netns/{namespace}");
        let thread = thread::Builder::new()
            .name(namespace.clone())
            .spawn(move || {
                let file = fs::File::open(path).expect("ip netns add left a file");
                move_into_link_name_space(
                    std::os::fd::AsFd::as_fd(&file),
                    Some(LinkNameSpaceType::Network),
                )
                .expect("we own this namespace");
                let runtime = runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime needs only an epoll");
                let _ = ready.send(runtime.handle().clone());
                // Dropping the runtime on this thread drops every task with its sockets.
                let _ = runtime.block_on(stopped);
            })
            .expect("one more thread");
        let runtime = runtime
            .recv_timeout(BOUND)
            .expect("the host's thread says when it is in its namespace");
        let host = Self(Arc::new(Inner {
            namespace,
            runtime,
            interfaces: AtomicU32::new(0),
            thread: Mutex::new(Some((stop, thread))),
        }));
        // Without it an IPv6 address is no good for its first second.
        host.sysctl("net.ipv6.conf.all.accept_dad", "0");
        host.sysctl("net.ipv6.conf.default.accept_dad", "0");
        host.ip("link set lo up");
        host
    }

    fn stop(&self) {
        let thread = self.0.thread.lock();
        if let Some((stop, thread)) = thread.unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stop.send(());
            let _ = thread.join();
            let _ = ip_command(&format!("netns del {}", self.0.namespace)).status();
        }
    }

    /// The namespace's name, as ip(8) knows it.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// Starts a task on this host: every socket it opens is in the host's namespace.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0.runtime.spawn(task)
    }

    /// Runs a task on this host and waits for its result, for at most a minute. Not from within a task.
    #[track_caller]
    pub fn run<F>(&self, task: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.run_within(Duration::from_secs(60), task)
    }

    /// As [`run`](Self::run), with a bound of the caller's. A panic of the task goes on in the caller.
    #[track_caller]
    pub fn run_within<F>(&self, bound: Duration, task: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (done, result) = mpsc::channel();
        let task = self.spawn(task);
        let abort = task.abort_handle();
        self.spawn(async move {
            let _ = done.send(task.await);
        });
        match result.recv_timeout(bound) {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => match error.try_into_panic() {
                Ok(payload) => panic::resume_unwind(payload),
                Err(error) => panic!("{}: {error}", self.namespace()),
            },
            Err(_) => {
                abort.abort();
                panic!("{}: a task did not end within {bound:?}", self.namespace())
            }
        }
    }

    /// Calls a function on this host's thread, in its namespace.
    #[track_caller]
    pub fn call<T: Send + 'static>(&self, function: impl FnOnce() -> T + Send + 'static) -> T {
        self.run(async move { function() })
    }

    /// A command that will run in this host's namespace. Its process id is the one that spawning it returns.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace()))
            .args(["--", program]);
        command
    }

    /// Runs ip(8) in this host's namespace, arguments separated by spaces.
    ///
    /// # Panics
    /// When it fails, with what it said.
    #[track_caller]
    pub fn ip(&self, arguments: &str) -> String {
        run_ip(&format!("-n {} {arguments}", self.namespace()))
    }

    /// Gives an interface one more address (`"10.0.0.1/24"`, `"fd00::1/64"`).
    #[track_caller]
    pub fn address(&self, interface: &str, address: &str) {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("address add {address} dev {interface}{nodad}"));
    }

    /// Adds a route (`"10.9.0.0/16"` or `"default"`) by way of a neighbour.
    #[track_caller]
    pub fn route(&self, to: &str, via: &str) {
        self.ip(&format!("route add {to} via {via}"));
    }

    /// From now on packets to and from a network vanish here without an answer; for a router.
    #[track_caller]
    pub fn black_hole(&self, network: &str) {
        self.ip(&format!("rule add to {network} blackhole"));
        self.ip(&format!("rule add from {network} blackhole"));
    }

    /// Ends a [`black_hole`](Self::black_hole).
    #[track_caller]
    pub fn pass_again(&self, network: &str) {
        self.ip(&format!("rule del to {network} blackhole"));
        self.ip(&format!("rule del from {network} blackhole"));
    }

    /// Sets a network sysctl (`net.…`) of this namespace; few others are per namespace.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let text = value.to_owned();
        // The files show the namespace of the thread that opens them.
        if let Err(error) = self.call(move || fs::write(path, text)) {
            panic!("{}: sysctl {key}={value}: {error}", self.namespace());
        }
    }

    /// The TCP sockets of this namespace, as /proc shows them.
    #[track_caller]
    pub fn sockets(&self) -> Vec<Socket> {
        self.call(sockets::of_this_namespace)
    }

    pub(super) fn next_interface(&self, prefix: &str) -> String {
        let number = self.0.interfaces.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}{number}")
    }
}

/// A wire between two hosts.
#[derive(Debug)]
pub struct Veth {
    ends: [(Host, String); 2],
}

impl Veth {
    /// The interface's name at the left (0) or right (1) end.
    pub fn interface(&self, end: usize) -> &str {
        &self.ends[end].1
    }

    /// Takes the link down: packets vanish without an answer. Routes over it go too, as the kernel has it.
    #[track_caller]
    pub fn down(&self) {
        self.each("down");
    }

    /// Brings it up again; routes other than the link's own must be added anew.
    #[track_caller]
    pub fn up(&self) {
        self.each("up");
    }

    /// Sets both ends' MTU.
    #[track_caller]
    pub fn mtu(&self, mtu: u32) {
        self.each(&format!("mtu {mtu}"));
    }

    /// One TCP segment per packet, as a plain network card delivers them: no TSO at the sender, nothing left for GRO at the receiver.
    ///
    /// Done with `gso_max_segs`, which ip(8) can set without ethtool(8).
    #[track_caller]
    pub fn without_offload(&self) {
        self.each("gso_max_segs 1");
    }

    /// How many packets an end has sent; one that holds several segments counts once.
    #[track_caller]
    pub fn packets_sent(&self, end: usize) -> u64 {
        let (host, interface) = &self.ends[end];
        let interface = format!("{interface}:");
        let table = host.call(|| fs::read_to_string("/proc/thread-self/net/dev"));
        let table = table.expect("/proc is mounted");
        let line = table
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(&interface));
        let number = line.and_then(|line| line.split_whitespace().nth(9));
        number
            .and_then(|number| number.parse().ok())
            .expect("an interface of ours has a line")
    }

    #[track_caller]
    fn each(&self, what: &str) {
        for (host, interface) in &self.ends {
            host.ip(&format!("link set {interface} {what}"));
        }
    }
}

fn ip_command(arguments: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    command
}

#[track_caller]
fn run_ip(arguments: &str) -> String {
    let output = ip_command(arguments)
        .output()
        .expect("ip(8) was there at the start");
    said(&format!("ip {arguments}"), &output)
}

#[track_caller]
fn said(what: &str, output: &Output) -> String {
    assert!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command to its end and returns what it wrote to stdout, with `input` at its stdin.
///
/// # Panics
/// When it cannot be started or fails, with what it wrote to stderr.
#[track_caller]
pub fn output_of(mut command: Command, input: &[u8]) -> String {
    let what = format!("{command:?}");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().expect("a child can be waited for");
    said(&what, &output)
}
