//! Each relay's configuration: what its package ships, one thread, two listeners (without and with a PROXY v2 header), one upstream.

use std::{io, path::Path, process::Command};

use crate::{
    lab::{NAME_SERVER, ORIGIN_NAME, World},
    variant::Tuning,
};

/// How many connections a relay is configured for: more only where that many are opened, since some set memory aside for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// 2,000 clients.
    Usual,
    /// So many.
    For(usize),
}

impl Room {
    fn connections(self) -> usize {
        match self {
            Self::Usual => 4096,
            Self::For(clients) => 2 * clients + 200,
        }
    }
}

/// Shipped defaults, but for what makes it equal to the others: one worker, a listener without a header in front. The one with a header is as in
/// use: policy, accounts, and an upstream that is a name.
pub(crate) fn tollgate(number: usize, admin: &str, more: &Tuning) -> String {
    let (plain, header) = (World::entry(number), World::entry_with_header(number));
    let origin = World::origin(number);
    let port = origin.port();
    // Another tollgate may not know of it.
    let audit = match more.audit.is_empty() {
        true => String::new(),
        false => format!("[audit]\n{}", more.audit),
    };
    let Tuning {
        top,
        resolver,
        listener,
        upstream,
        end,
        ..
    } = more;
    format!(
        r#"
workers = 1
{top}
[admin]
bind = "{admin}"
{audit}
[resolver]
servers = ["{NAME_SERVER}"]
{resolver}
[[listener]]
name = "plain"
bind = "{plain}"
proxy_protocol = "off"
upstream = "origin"
{listener}
[[listener]]
name = "header"
bind = "{header}"
proxy_protocol = "v2"
trusted_peers = ["10.1.0.0/24"]
upstream = "origin-by-name"
{listener}
[[upstream]]
name = "origin"
targets = ["{origin}"]
{upstream}
[[upstream]]
name = "origin-by-name"
targets = ["{ORIGIN_NAME}:{port}"]
{upstream}
{end}
"#
    )
}

/// `@DIR@` is a folder of its own.
pub(crate) fn nginx(binary: &Path, number: usize, server: &str, room: Room) -> io::Result<String> {
    let output = Command::new(binary).arg("-V").output()?;
    let built = String::from_utf8_lossy(&output.stderr).into_owned();
    let modules = built
        .split_whitespace()
        .find_map(|word| word.strip_prefix("--modules-path="));
    let load = match (built.contains("--with-stream=dynamic"), modules) {
        (true, Some(modules)) => format!("load_module {modules}/ngx_stream_module.so;"),
        _ => String::new(),
    };
    let (plain, header) = (World::entry(number), World::entry_with_header(number));
    let (origin, connections) = (World::origin(number), room.connections());
    Ok(format!(
        "{load}
daemon off;
user root;
worker_processes 1;
pid @DIR@/nginx.pid;
error_log stderr crit;
events {{ worker_connections {connections}; }}
stream {{
    server {{
        listen {plain};
        proxy_pass {origin};
        {server}
    }}
    server {{
        listen {header} proxy_protocol;
        proxy_pass {origin};
        {server}
    }}
}}
"
    ))
}

/// `maxconn` counts clients only.
pub(crate) fn haproxy(number: usize, global: &[String], defaults: &[String], room: Room) -> String {
    let (plain, header) = (World::entry(number), World::entry_with_header(number));
    let (origin, connections) = (World::origin(number), room.connections() / 2);
    let (global, defaults) = (global.join("\n    "), defaults.join("\n    "));
    format!(
        "global
    nbthread 1
    maxconn {connections}
    {global}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1m
    timeout server 1m
    {defaults}
listen plain
    bind {plain}
    server origin {origin}
listen header
    bind {header} accept-proxy
    server origin {origin}
"
    )
}
