//! TLS as agents and load balancers speak it, with certificates that live in memory only.

use std::{collections::BTreeMap, fmt::Display, net::SocketAddr, sync::Arc};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};
use tokio_util::sync::CancellationToken;

use super::{netns::Host, origin, watched::Watched};

/// A certificate for some names, and who trusts it.
#[derive(Clone, Debug)]
pub struct Identity {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Identity {
    /// Makes a key and a certificate for these names.
    ///
    /// # Errors
    /// One line that says why there is none.
    pub fn new(names: &[&str]) -> Result<Self, String> {
        let failed = |what: &dyn Display| format!("cannot make a certificate: {what}");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).map_err(|error| failed(&error))?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], PrivateKeyDer::from(key))
            .map_err(|error| failed(&error))?;
        let mut trusted = RootCertStore::empty();
        trusted
            .add(made.cert.der().clone())
            .map_err(|error| failed(&error))?;
        let client = ClientConfig::builder()
            .with_root_certificates(trusted)
            .with_no_client_auth();
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }

    /// The server's side.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.server))
    }

    /// The side of those who trust it.
    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(Arc::clone(&self.client))
    }

    /// What those who trust it connect with.
    pub fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }
}

/// What a [`Terminator`] has seen.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Connections accepted so far.
    pub accepted: u64,
    /// Of these, still open.
    pub open: u64,
    /// Handshakes that were completed, by the name that the client asked for.
    pub names: BTreeMap<String, u64>,
}

/// A load balancer's TLS listener: ends TLS and passes what is in it on to a server in plain text. Runs until it is dropped.
#[derive(Debug)]
pub struct Terminator {
    books: Arc<Watched<Books>>,
    stop: CancellationToken,
}

impl Terminator {
    /// Listens on `address` of `host`; from there it reaches the server at `to`.
    ///
    /// # Panics
    /// When it cannot listen.
    #[track_caller]
    pub fn start(host: &Host, address: &str, identity: &Identity, to: SocketAddr) -> Self {
        let wanted = origin::parse(address);
        let listener = host.run(async move { origin::listen(wanted) });
        let listener = listener.unwrap_or_else(|error| panic!("{address}: {error}"));
        let books = Arc::new(Watched::<Books>::default());
        let stop = CancellationToken::new();
        let server = Server {
            acceptor: identity.acceptor(),
            to,
            books: Arc::clone(&books),
            stop: stop.clone(),
        };
        host.spawn(server.run(listener));
        Self { books, stop }
    }

    /// What it has seen so far.
    pub fn books(&self) -> Books {
        self.books.look(Books::clone)
    }

    /// Stops listening and cuts what is open.
    pub fn kill(&self) {
        self.stop.cancel();
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Clone)]
struct Server {
    acceptor: TlsAcceptor,
    to: SocketAddr,
    books: Arc<Watched<Books>>,
    stop: CancellationToken,
}

impl Server {
    async fn run(self, listener: TcpListener) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            if let Ok((stream, _)) = accepted {
                tokio::spawn(self.clone().serve(stream));
            }
        }
    }

    async fn serve(self, client: TcpStream) {
        self.books.update(|books| {
            books.accepted += 1;
            books.open += 1;
        });
        let work = async {
            client.set_nodelay(true)?;
            let mut client = self.acceptor.accept(client).await?;
            let name = client.get_ref().1.server_name().unwrap_or("").to_owned();
            self.books
                .update(|books| *books.names.entry(name).or_default() += 1);
            let mut server = TcpStream::connect(self.to).await?;
            server.set_nodelay(true)?;
            copy_bidirectional(&mut client, &mut server).await
        };
        // How it ended, the server and the client count for themselves.
        let _ = self.stop.run_until_cancelled(work).await;
        self.books.update(|books| books.open -= 1);
    }
}
