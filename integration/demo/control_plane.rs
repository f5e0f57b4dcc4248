//! The control plane: takes what agents post, over HTTP and over TLS, and counts every byte of every connection by the consumer that it
//! was told about in the requests. It knows nothing of endpoint ids or of the relay.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{
    counted::{Counted, Tally},
    harness::{BOUND, netns::Host, tls::Identity, watched::Watched},
};

/// In which header agents say whose they are.
pub(crate) const CONSUMER: &str = "x-consumer";

/// What came from one consumer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// What was counted, over all lives of the control plane.
#[derive(Debug, Default)]
pub(crate) struct Books {
    open: u64,
    /// By consumer; under the empty name what never said one.
    consumers: BTreeMap<String, Seen>,
}

impl Books {
    pub(crate) fn of(&self, consumer: &str) -> Seen {
        self.consumers.get(consumer).copied().unwrap_or_default()
    }
}

/// Servers that run until they are dropped.
pub(crate) struct ControlPlane {
    stop: CancellationToken,
}

impl ControlPlane {
    /// Serves HTTP on port 80 and TLS on port 443 of each address.
    pub(crate) fn start(
        host: &Host,
        addresses: &[&str],
        identity: &Identity,
        books: &Arc<Watched<Books>>,
    ) -> Result<Self, String> {
        let stop = CancellationToken::new();
        for address in addresses {
            for (port, tls) in [(80, None), (443, Some(identity.acceptor()))] {
                let at: SocketAddr = format!("{address}:{port}")
                    .parse()
                    .map_err(|error| format!("{address}: {error}"))?;
                let listener = host
                    .run(async move { tokio::net::TcpListener::bind(at).await })
                    .map_err(|error| format!("{at}: {error}"))?;
                let server = Server {
                    tls,
                    books: Arc::clone(books),
                    stop: stop.clone(),
                };
                host.spawn(server.run(listener));
            }
        }
        Ok(Self { stop })
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Waits until no connection is open. False when that takes too long.
pub(crate) fn wait_over(books: &Watched<Books>) -> bool {
    let over = books.becomes(BOUND, |books| (books.open == 0).then_some(()));
    over.is_some()
}

#[derive(Clone)]
struct Server {
    tls: Option<TlsAcceptor>,
    books: Arc<Watched<Books>>,
    stop: CancellationToken,
}

impl Server {
    async fn run(self, listener: tokio::net::TcpListener) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            if let Ok((stream, _)) = accepted {
                tokio::spawn(self.clone().serve(stream));
            }
        }
    }

    async fn serve(self, stream: TcpStream) {
        let connection = Arc::new(Connection::open(&self.books));
        let _ = stream.set_nodelay(true);
        let stream = Counted::new(stream, Arc::clone(&connection.tally));
        let work = async {
            // An agent that went away in the middle shows in the books; there is nothing to say about it here.
            let _ = match &self.tls {
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => take(stream, &connection).await,
                    Err(error) => Err(error),
                },
                None => take(stream, &connection).await,
            };
        };
        self.stop.run_until_cancelled(work).await;
    }
}

async fn take<S>(stream: S, connection: &Arc<Connection>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request: Request<Incoming>| {
        let connection = Arc::clone(connection);
        async move {
            let consumer = request.headers().get(CONSUMER);
            let consumer = consumer.and_then(|name| name.to_str().ok()).unwrap_or("");
            connection.belongs_to(consumer);
            let whole = request.into_body().collect().await.is_ok();
            if whole {
                connection.request();
            }
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"taken\n"))))
        }
    });
    http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

/// One connection; booked when it is dropped, however it ended.
struct Connection {
    books: Arc<Watched<Books>>,
    tally: Arc<Tally>,
    consumer: OnceLock<String>,
    requests: Mutex<u64>,
}

impl Connection {
    fn open(books: &Arc<Watched<Books>>) -> Self {
        books.update(|books| books.open += 1);
        Self {
            books: Arc::clone(books),
            tally: Arc::default(),
            consumer: OnceLock::new(),
            requests: Mutex::default(),
        }
    }

    fn belongs_to(&self, consumer: &str) {
        self.consumer.get_or_init(|| consumer.to_owned());
    }

    fn request(&self) {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let consumer = self.consumer.get().cloned().unwrap_or_default();
        let requests = *self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        self.books.update(|books| {
            books.open -= 1;
            let seen = books.consumers.entry(consumer).or_default();
            seen.connections += 1;
            seen.requests += requests;
            seen.received += self.tally.received();
            seen.sent += self.tally.sent();
        });
    }
}
