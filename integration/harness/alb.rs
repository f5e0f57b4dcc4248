//! An Application Load Balancer: ends HTTP/1 and passes each request on by its path.

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{
    http::{Message, Messages},
    netns::Host,
    origin,
    watched::Watched,
};

/// What it has done.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Connections accepted so far.
    pub accepted: u64,
    /// Of these, still open.
    pub open: u64,
    /// Requests answered, by the rule that took them; under the empty path those that none took.
    pub rules: BTreeMap<String, u64>,
}

/// A balancer that runs until it is dropped.
#[derive(Debug)]
pub struct Alb {
    books: Arc<Watched<Books>>,
    stop: CancellationToken,
}

impl Alb {
    /// Listens on `address` of `host`, and sends what is asked below each path to its server; anything else is answered with 404.
    ///
    /// # Panics
    /// When it cannot listen.
    #[track_caller]
    pub fn start(host: &Host, address: &str, rules: &[(&str, &str)]) -> Self {
        let wanted = origin::parse(address);
        let listener = host.run(async move { origin::listen(wanted) });
        let listener = listener.unwrap_or_else(|error| panic!("{address}: {error}"));
        let rules = rules
            .iter()
            .map(|(path, server)| ((*path).to_owned(), origin::parse(server)));
        let books = Arc::new(Watched::<Books>::default());
        let stop = CancellationToken::new();
        let server = Server {
            rules: Arc::new(rules.collect()),
            books: Arc::clone(&books),
            stop: stop.clone(),
        };
        host.spawn(server.run(listener));
        Self { books, stop }
    }

    /// What it has done so far.
    pub fn books(&self) -> Books {
        self.books.look(Books::clone)
    }
}

impl Drop for Alb {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[derive(Clone)]
struct Server {
    rules: Arc<Vec<(String, SocketAddr)>>,
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

    async fn serve(self, mut client: TcpStream) {
        self.books.update(|books| {
            books.accepted += 1;
            books.open += 1;
        });
        let work = self.answer_all(&mut client);
        // A client that went away has its own books.
        let _ = self.stop.run_until_cancelled(work).await;
        self.books.update(|books| books.open -= 1);
    }

    async fn answer_all(&self, client: &mut TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut requests = Messages::default();
        while let Some(request) = requests.read(client).await? {
            let last = request.is_last();
            let path = request.second_word();
            let below = |rule: &str| {
                path.strip_prefix(rule)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let rule = self.rules.iter().find(|(rule, _)| below(rule));
            let answer = match rule {
                Some((_, server)) => ask(*server, &request).await,
                None => Ok(Message::answer("404 Not Found", "", Vec::new())),
            };
            let answer =
                answer.unwrap_or_else(|_| Message::answer("502 Bad Gateway", "", Vec::new()));
            let rule = rule.map(|(rule, _)| rule.clone()).unwrap_or_default();
            self.books
                .update(|books| *books.rules.entry(rule).or_default() += 1);
            client.write_all(&answer.bytes()).await?;
            if last {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// One request on a connection of its own.
async fn ask(server: SocketAddr, request: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&request.bytes()).await?;
    let answer = Messages::default().read(&mut stream).await?;
    answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
