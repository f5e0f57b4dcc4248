//! client, HAProxy, the relay, nginx: four hosts in a row, each of which reaches only its neighbours.

use std::{fs, path::Path};

use tempfile::TempDir;

use crate::{
    harness::{
        netns::{Host, Lab, output_of},
        relay::{Baseline, Relay, Start},
    },
    programs::{self, Server, command, read, until},
};

/// The configuration that is shipped, with the control plane's address in place of its name.
const SHIPPED: &str = include_str!("../../systemd/tollgate.toml");
const CONTROL_PLANE: &str = "cp.us-east-1.example.internal:443";
/// The name in nginx's certificate.
pub(crate) const NAME: &str = "cp.us-east-1.example.internal";
/// Where clients connect: HAProxy.
pub(crate) const FRONT: &str = "172.31.0.1";
pub(crate) const FRONT_V6: &str = "fd31::1";
/// Where the client is.
pub(crate) const CLIENT: &str = "172.31.0.10";
pub(crate) const CLIENT_V6: &str = "fd31::10";
/// Where the relay is, as HAProxy sees it.
pub(crate) const RELAY: &str = "10.20.0.2:8443";
/// What nginx serves at /large.
pub(crate) const LARGE: usize = 10_000_000;

/// What HAProxy adds to the line of its server.
pub(crate) const WITH_CHECKSUM: &str = "send-proxy-v2 proxy-v2-options crc32c";

/// How many looks in a row must find the same number of descriptors.
const SETTLED: u32 = 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) relay: Relay,
    pub(crate) baseline: Baseline,
    pub(crate) folder: TempDir,
    _haproxy: Server,
    _nginx: Server,
    pub(crate) client: Host,
    pub(crate) sender: Host,
    _lab: Lab,
}

/// One connection, as HAProxy logged it: payload from the client and to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) from_client: u64,
    pub(crate) to_client: u64,
}

impl World {
    /// nginx's port behind the relay: 80 or 443. `line` is what HAProxy's line of the relay says besides its address.
    #[track_caller]
    pub(crate) fn new(name: &str, port: u16, line: &str) -> Self {
        Self::furnished(name, port, line, |start| start)
    }

    /// As [`new`](Self::new), with a relay that is started with more.
    #[track_caller]
    pub(crate) fn furnished(
        name: &str,
        port: u16,
        line: &str,
        more: impl FnOnce(Start) -> Start,
    ) -> Self {
        let lab = Lab::new(name);
        let [client, sender, relay_host, origin] =
            ["client", "haproxy", "relay", "nginx"].map(|name| lab.host(name));
        let wire = lab.veth(
            (&client, &format!("{CLIENT}/24")),
            (&sender, &format!("{FRONT}/24")),
        );
        client.address(wire.interface(0), &format!("{CLIENT_V6}/64"));
        sender.address(wire.interface(1), &format!("{FRONT_V6}/64"));
        lab.veth((&sender, "10.20.0.10/24"), (&relay_host, "10.20.0.2/24"));
        lab.veth((&relay_host, "10.30.0.1/24"), (&origin, "10.30.0.2/24"));
        // Under /run, which is ours alone and goes with our namespaces.
        let folder = TempDir::new_in("/run").expect("/run is ours");
        let nginx = nginx(&origin, folder.path());
        let start = Start::with(SHIPPED).replace(CONTROL_PLANE, &format!("10.30.0.2:{port}"));
        let relay = more(start).on(&relay_host);
        wait_settled(&relay);
        let baseline = Baseline::of(&relay);
        let haproxy = haproxy(&sender, folder.path(), line);
        Self {
            relay,
            baseline,
            folder,
            _haproxy: haproxy,
            _nginx: nginx,
            client,
            sender,
            _lab: lab,
        }
    }

    /// Runs curl on the client with these arguments, for at most 30 s; what it wrote to stdout.
    #[track_caller]
    pub(crate) fn curl(&self, arguments: &[&str]) -> String {
        let mut curl = command(&self.client, "curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "30"])
            .args(arguments);
        output_of(curl, b"")
    }

    /// A file of this world's own.
    pub(crate) fn path(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("/run is text").to_owned()
    }

    /// Waits until HAProxy has logged `n` connections, and returns them.
    #[track_caller]
    pub(crate) fn logged(&self, n: usize) -> Vec<Logged> {
        let path = self.folder.path().join("haproxy.out");
        let logged = until(|| {
            let connections: Vec<_> = read(&path).lines().filter_map(logged).collect();
            (connections.len() >= n).then_some(connections)
        });
        logged.unwrap_or_else(|| panic!("{n} connections of {}", read(&path)))
    }

    /// What nginx's log says about each request: bytes of the request, bytes of the answer.
    #[track_caller]
    pub(crate) fn requests(&self, n: usize) -> Vec<(u64, u64)> {
        let path = self.folder.path().join("access.log");
        let requests = until(|| {
            let requests: Vec<_> = read(&path)
                .lines()
                .filter_map(|line| {
                    let (request, answer) = line.split_once(' ')?;
                    Some((request.parse().ok()?, answer.parse().ok()?))
                })
                .collect();
            (requests.len() >= n).then_some(requests)
        });
        requests.unwrap_or_else(|| panic!("{n} requests of {}", read(&path)))
    }

    /// Payload booked in a direction. HAProxy names no endpoint, so everything is `direct`.
    #[track_caller]
    pub(crate) fn booked(&self, direction: &str) -> u64 {
        let labels = [("endpoint", "direct"), ("direction", direction)];
        self.relay.metric("tollgate_bytes_total", &labels)
    }

    /// What every test ends with: `n` connections were opened and closed in order, their bytes are those that HAProxy counted, and
    /// the relay is as it was before.
    #[track_caller]
    pub(crate) fn assert_books(&self, n: usize) {
        let completed = [("endpoint", "direct"), ("reason", "completed")];
        self.relay
            .wait_metric("tollgate_connections_closed_total", &completed, n as u64);
        let metrics = self.relay.metrics();
        assert_eq!(
            metrics.sum("tollgate_connections_opened_total", &[]),
            n as u64
        );
        assert_eq!(metrics.sum("tollgate_connections_active", &[]), 0);
        assert_eq!(metrics.sum("tollgate_header_errors_total", &[]), 0);
        let logged = self.logged(n);
        let sum = |of: fn(&Logged) -> u64| logged.iter().map(of).sum::<u64>();
        assert_eq!(
            self.booked("to_upstream"),
            sum(|connection| connection.from_client)
        );
        assert_eq!(
            self.booked("to_client"),
            sum(|connection| connection.to_client)
        );
        let kept = self.relay.metric("tollgate_pipes", &[("state", "idle")]);
        let kept = usize::try_from(kept).expect("a few");
        self.baseline.and_pipes(kept).assert_back(&self.relay);
    }
}

/// `/readyz` says 200 as soon as the control thread answers; a worker may be opening its last descriptors then.
#[track_caller]
fn wait_settled(relay: &Relay) {
    let mut last = 0;
    let mut looks = 0;
    relay.wait_until("the workers to have begun", || {
        let now = relay.fd_count();
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
        looks == SETTLED
    });
}

/// A line of the format below.
fn logged(line: &str) -> Option<Logged> {
    let (from_client, to_client) = line.strip_prefix("connection ")?.split_once(' ')?;
    Some(Logged {
        from_client: from_client.parse().ok()?,
        to_client: to_client.parse().ok()?,
    })
}

/// HAProxy that relays everything to the relay. It logs what it carried at each connection's end.
#[track_caller]
pub(crate) fn haproxy(host: &Host, folder: &Path, line: &str) -> Server {
    let config = folder.join("haproxy.cfg");
    let text = format!(
        "global\n    maxconn 200\n    log stdout format raw local0 info\n\
         defaults\n    mode tcp\n    log global\n    option dontlognull\n    timeout connect 5s\n    timeout client 30s\n    timeout server 30s\n\
         frontend consumers\n    bind {FRONT}:443\n    bind [{FRONT_V6}]:443\n    log-format \"connection %U %B\"\n    default_backend relay\n\
         backend relay\n    server relay {RELAY} {line}\n"
    );
    fs::write(&config, text).expect("a folder of ours");
    let mut haproxy = command(host, "haproxy");
    haproxy.arg("-f").arg(&config);
    let listens = [format!("{FRONT}:443"), format!("[{FRONT_V6}]:443")];
    let listens = listens.each_ref().map(String::as_str);
    Server::start(host, haproxy, &folder.join("haproxy.out"), &listens)
}

/// nginx as the control plane: plain on port 80, TLS on 443. It waits for the client's end (`lingering_close`): otherwise its kernel answers a
/// TLS client's last record with RST, and the connection is one that the upstream has reset. Requests to /take are read whole before they are answered.
#[track_caller]
fn nginx(host: &Host, folder: &Path) -> Server {
    let put = |name: &str, content: &[u8]| {
        fs::write(folder.join(name), content).expect("a folder of ours");
    };
    let mut openssl = command(host, "openssl");
    openssl
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", &format!("/CN={NAME}")])
        .args(["-addext", &format!("subjectAltName=DNS:{NAME}")])
        .arg("-keyout")
        .arg(folder.join("key.pem"))
        .arg("-out")
        .arg(folder.join("certificate.pem"));
    output_of(openssl, b"");
    let large = crate::harness::pattern::Pattern::new(1).bytes(0, LARGE);
    put("large", &large);
    let at = folder.display();
    let text = format!(
        "user root;\ndaemon off;\nmaster_process off;\npid {at}/nginx.pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\n  log_format bytes '$request_length $bytes_sent';\n  access_log {at}/access.log bytes;\n\
         client_body_temp_path {at}/body;\n  proxy_temp_path {at}/proxy;\n  fastcgi_temp_path {at}/fastcgi;\n  scgi_temp_path {at}/scgi;\n  uwsgi_temp_path {at}/uwsgi;\n\
         client_max_body_size 100m;\n  lingering_close always;\n\
         server {{\n    listen 127.0.0.1:8081;\n    access_log off;\n    location / {{ return 200 \"$content_length bytes taken\\n\"; }}\n  }}\n\
         server {{\n    listen 10.30.0.2:80;\n    listen 10.30.0.2:443 ssl;\n    ssl_protocols TLSv1.2 TLSv1.3;\n    ssl_certificate {at}/certificate.pem;\n    ssl_certificate_key {at}/key.pem;\n    root {at};\n\
         location = / {{ return 200 \"from nginx\\n\"; }}\n    location = /large {{ }}\n    location = /take {{ proxy_pass http://127.0.0.1:8081; }}\n  }}\n}}\n"
    );
    put("nginx.conf", text.as_bytes());
    let mut nginx = command(host, "nginx");
    nginx
        .args(["-e", "stderr", "-c"])
        .arg(folder.join("nginx.conf"));
    let listens = ["10.30.0.2:80", "10.30.0.2:443"];
    Server::start(host, nginx, &folder.join("nginx.out"), &listens)
}

/// What a program says that must not fail, on a host.
#[track_caller]
pub(crate) fn said(host: &Host, program: &str, arguments: &[&str], input: &[u8]) -> String {
    let mut command = programs::command(host, program);
    command.args(arguments);
    output_of(command, input)
}
