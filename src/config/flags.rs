//! `run` without a file: one listener, one upstream, everything else by default. The flags fill the same mirror as a file, so
//! they are judged by the same rules, and a mistake points into the command line.

use toml::Spanned;

use super::Config;
use super::build;
use super::error::Error;
use super::file::{AdminTable, File, Key, ListenerTable, Raw, UpstreamTable};

/// What `run` was given in place of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--listen`: address and port to listen on.
    pub listen: String,
    /// `--upstream`: `HOST:PORT` to forward to.
    pub upstream: String,
    /// `--trusted`: networks whose PROXY headers are believed. Needed unless `proxy_protocol` is `off`.
    pub trusted: Vec<String>,
    /// `--proxy-protocol`: `v2` (default) or `off`.
    pub proxy_protocol: Option<String>,
    /// `--admin`: address of the admin port, or `off`. Default 127.0.0.1:9900.
    pub admin: Option<String>,
    /// `--state-dir`: where the ledger is kept. Default `$STATE_DIRECTORY`, else the books live in memory.
    pub state_dir: Option<String>,
}

/// The name of both the listener and the upstream in metrics and books.
const NAME: &str = "default";

/// How a key of the file is written as a flag.
const FLAGS: [(&str, &str); 6] = [
    ("listener.bind", "--listen"),
    ("upstream.targets", "--upstream"),
    ("listener.trusted_peers", "--trusted"),
    ("listener.proxy_protocol", "--proxy-protocol"),
    ("admin.bind", "--admin"),
    ("state_dir", "--state-dir"),
];

impl Config {
    /// Checks what `run` was given in place of a file.
    ///
    /// # Errors
    /// With every mistake found.
    pub fn from_flags(flags: &Flags) -> Result<Self, Error> {
        let mut line = Line::default();
        let listen = line.flag("--listen", &flags.listen);
        let upstream = line.flag("--upstream", &flags.upstream);
        let trusted = line.flags("--trusted", &flags.trusted);
        let mut maybe =
            |name, value: &Option<String>| value.as_ref().map(|value| line.flag(name, value));
        let proxy_protocol = maybe("--proxy-protocol", &flags.proxy_protocol);
        let admin = maybe("--admin", &flags.admin);
        let state_dir = maybe("--state-dir", &flags.state_dir);
        let name = || Some(Spanned::new(0..0, Raw::Text(NAME.to_owned())));
        let listener = ListenerTable {
            name: name(),
            bind: Some(listen),
            upstream: name(),
            proxy_protocol,
            trusted_peers: trusted,
            ..Default::default()
        };
        let targets = Some(Spanned::new(upstream.span(), Raw::List(vec![upstream])));
        let file = File {
            admin: AdminTable {
                bind: admin,
                ..Default::default()
            },
            state_dir,
            listener: vec![Spanned::new(0..0, listener)],
            upstream: vec![Spanned::new(
                0..0,
                UpstreamTable {
                    name: name(),
                    targets,
                    ..Default::default()
                },
            )],
            ..Default::default()
        };
        build::config(&file, &line.0).map_err(|mut mistakes| {
            for mistake in &mut mistakes {
                if let Some((_, flag)) = FLAGS.iter().find(|(key, _)| *key == mistake.key) {
                    mistake.key = (*flag).to_owned();
                }
                if mistake.key == "--trusted" && flags.trusted.is_empty() {
                    mistake.span = None; // It stands for the whole line.
                    mistake.help = "add the subnets of the NLB: --trusted 10.20.0.0/16; \
                                    or, where nothing sends a header, --proxy-protocol off"
                        .to_owned();
                }
            }
            Error::Flags {
                line: line.0,
                mistakes,
            }
        })
    }
}

/// The flags as one line of text, for mistakes to point into.
#[derive(Default)]
struct Line(String);

impl Line {
    /// Appends a flag with its value; gives the value with its place.
    fn flag(&mut self, name: &str, value: &str) -> Spanned<Raw> {
        self.word(name);
        self.word(value)
    }

    fn flags(&mut self, name: &str, values: &[String]) -> Key {
        if values.is_empty() {
            return None;
        }
        self.word(name);
        let start = self.0.len() + 1;
        let items = values.iter().map(|value| self.word(value)).collect();
        Some(Spanned::new(start..self.0.len(), Raw::List(items)))
    }

    fn word(&mut self, word: &str) -> Spanned<Raw> {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        let start = self.0.len();
        self.0.push_str(word);
        Spanned::new(start..self.0.len(), Raw::Text(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ErrorKind, Peers, ProxyProtocol};

    fn flags() -> Flags {
        Flags {
            listen: "0.0.0.0:8443".to_owned(),
            upstream: "cp.example:443".to_owned(),
            trusted: vec!["10.20.0.0/16".to_owned()],
            ..Default::default()
        }
    }

    #[test]
    fn three_flags_make_a_relay() {
        let config = Config::from_flags(&flags()).expect("valid");
        assert_eq!(config.listeners[0].proxy_protocol, ProxyProtocol::V2);
        assert_eq!(
            config.listeners[0].trusted_peers,
            Peers::Within(vec!["10.20.0.0/16".parse().expect("a network")])
        );
        assert_eq!(config.upstreams[0].targets.len(), 1);
        assert!(config.admin.is_some());
    }

    #[test]
    fn a_header_without_trusted_peers_is_refused() {
        let error = Config::from_flags(&Flags {
            trusted: vec![],
            ..flags()
        })
        .expect_err("must be refused");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.mistakes()[0].help.contains("--trusted 10.20.0.0/16"));
    }

    #[test]
    fn without_a_header_anyone_may_connect() {
        let off = Flags {
            trusted: vec![],
            proxy_protocol: Some("off".to_owned()),
            admin: Some("off".to_owned()),
            ..flags()
        };
        let config = Config::from_flags(&off).expect("valid");
        assert_eq!(config.listeners[0].trusted_peers, Peers::Anyone);
        assert_eq!(config.admin, None);
    }

    #[test]
    fn a_mistake_names_the_flag_and_points_into_the_command_line() {
        let wrong = Flags {
            listen: "8443".to_owned(),
            upstream: "cp.example".to_owned(),
            ..flags()
        };
        let error = Config::from_flags(&wrong).expect_err("must be refused");
        let Error::Flags { line, mistakes } = &error else {
            panic!("{error}")
        };
        let keys: Vec<&str> = mistakes
            .iter()
            .map(|mistake| mistake.key.as_str())
            .collect();
        assert_eq!(keys, ["--listen", "--upstream"]);
        assert_eq!(
            &line[mistakes[1].span.clone().expect("a place")],
            "cp.example"
        );
    }
}
