//! The control thread's own ports and its socket: what people and balancers ask.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tracing::info;

use super::{SupervisorError, bind_error};
use crate::admin::health;
use crate::admin::{self, Socket, View};
use crate::config::{Config, Peers};
use crate::listener::bind_alone;

/// The control thread's own ports, bound before anything starts and served once the workers accept.
pub(super) struct Ports {
    admin: Option<TcpListener>,
    health: Option<(TcpListener, Peers)>,
    socket: Option<Socket>,
}

impl Ports {
    pub(super) fn bind(config: &Config) -> Result<Self, SupervisorError> {
        let listen = |address: SocketAddr, what: &str| {
            let listener = bind_alone(address).and_then(TcpListener::from_std);
            listener.map_err(|error| bind_error(address, what.to_owned(), error))
        };
        let admin = config
            .admin
            .map(|address| listen(address, "[admin] bind"))
            .transpose()?;
        let health = config.health.as_ref().map(|port| {
            listen(port.bind, "[health] bind")
                .map(|listener| (listener, port.trusted_peers.clone()))
        });
        let socket = config.admin_socket.as_ref().map(|path| {
            Socket::bind(path).map_err(|error| SupervisorError::AdminSocket {
                path: path.clone(),
                error,
            })
        });
        Ok(Self {
            admin,
            health: health.transpose()?,
            socket: socket.transpose()?,
        })
    }

    pub(super) fn serve(self, view: View) {
        if let Some((listener, trusted)) = self.health {
            tokio::spawn(health::serve(listener, trusted, view.readiness.clone()));
        }
        let view = Arc::new(view);
        if let Some(socket) = self.socket {
            info!(path = %socket.path().display(), "admin socket");
            tokio::spawn(socket.serve(view.clone()));
        }
        if let Some(listener) = self.admin {
            if let Ok(address) = listener.local_addr() {
                info!(%address, "admin port: /metrics /status /healthz /readyz");
            }
            tokio::spawn(admin::serve(listener, view));
        }
    }
}
