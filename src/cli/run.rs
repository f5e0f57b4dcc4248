//! `run`: the relay itself, configured by a file or by flags.

use std::path::{Path, PathBuf};

use super::{CONFIG_PATH, Error, ExitCode};
use crate::activation::Passed;
use crate::config::{Config, Flags};
use crate::supervisor::Source;
use crate::telemetry;

/// Run the relay, with a configuration file or, for one listener and one upstream, without.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    tollgate run --config /etc/tollgate/tollgate.toml\n  \
    tollgate run --listen 0.0.0.0:8443 --upstream cp.example.internal:443 --trusted 10.20.0.0/16")]
pub(super) struct Args {
    /// Configuration file [default: /etc/tollgate/tollgate.toml]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["listen", "upstream", "trusted", "proxy_protocol", "admin", "state_dir"])]
    config: Option<PathBuf>,
    /// Address and port to listen on, for instance 0.0.0.0:8443; `[::]:8443` takes IPv6 and IPv4
    #[arg(long, value_name = "ADDR", requires = "upstream")]
    listen: Option<String>,
    /// Where to forward to, for instance cp.us-east-1.example.internal:443
    #[arg(long, value_name = "HOST:PORT", requires = "listen")]
    upstream: Option<String>,
    /// Networks whose PROXY headers are believed: the NLB's subnets. Required unless --proxy-protocol off
    #[arg(long, value_name = "CIDR", num_args = 1.., requires = "listen")]
    trusted: Vec<String>,
    /// Whether each connection begins with a PROXY v2 header; never guessed [default: v2]
    #[arg(long, value_name = "MODE", value_parser = ["v2", "off"], requires = "listen")]
    proxy_protocol: Option<String>,
    /// Address of the admin port (/metrics, /healthz, /readyz, /status), or off [default: 127.0.0.1:9900]
    #[arg(long, value_name = "ADDR", requires = "listen")]
    admin: Option<String>,
    /// Where the books are kept, so that they outlive the process [default: $STATE_DIRECTORY, else in memory]
    #[arg(long, value_name = "DIR", requires = "listen")]
    state_dir: Option<String>,
}

impl Args {
    fn config(&self) -> Result<(Config, Source), Error> {
        let (config, source) = match (&self.listen, &self.upstream) {
            (Some(listen), Some(upstream)) => {
                let config = Config::from_flags(&Flags {
                    listen: listen.clone(),
                    upstream: upstream.clone(),
                    trusted: self.trusted.clone(),
                    proxy_protocol: self.proxy_protocol.clone(),
                    admin: self.admin.clone(),
                    state_dir: self.state_dir.clone(),
                });
                let (path, text) = (None, "".into());
                (config, Source { path, text })
            }
            _ => {
                let path = self.config.as_deref().unwrap_or(Path::new(CONFIG_PATH));
                // It is read again by a reload, wherever the process is then.
                let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
                let (config, text) = Config::read(path).map_err(Error::Config)?;
                let (path, text) = (Some(whole), text.into());
                (Ok(config), Source { path, text })
            }
        };
        Ok((config.map_err(Error::Config)?, source))
    }
}

/// Runs until told to stop.
pub(super) fn run(arguments: &Args) -> Result<ExitCode, Error> {
    let passed = Passed::take(); // before anything is opened
    let (config, source) = arguments.config()?;
    let log = telemetry::init(&config.log);
    crate::supervisor::run(config, source, passed, &log).map_err(Error::Supervisor)?;
    Ok(ExitCode::Ok)
}
