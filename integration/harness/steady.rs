//! Steady traffic: an agent's machine that opens connection after connection at one pace, checks every answer, and remembers of each
//! connection when it began, what became of it, and who answered.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message as Question, Query},
    rr::{Name, RData, RecordType},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;

use super::{
    BOUND,
    http::{Message, Messages},
    netns::Host,
    pattern::Pattern,
    stream::within,
    tls::Identity,
    watched::Watched,
};

/// Ports that connections come from: one after the other.
const FIRST_PORT: u16 = 10_000;
const PORTS: u64 = 50_000;

/// Something that agents push to.
#[derive(Clone, Debug)]
pub struct Service {
    /// Under which name they look it up, ask for it in TLS and name it in `Host`.
    pub name: String,
    /// At which port.
    pub port: u16,
    /// To which path they post.
    pub path: String,
    /// Whom they trust; none: in plain text.
    pub tls: Option<Identity>,
}

/// What an agent's machine does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The VPC's name server: it is asked before each connection.
    pub resolver: SocketAddr,
    /// The address of the machine.
    pub from: IpAddr,
    /// What is pushed to, one after the other.
    pub services: Vec<Service>,
    /// From the beginning of one connection to that of the next.
    pub pace: Duration,
    /// In the body of each request; the answer is as long.
    pub bytes: usize,
    /// How long a whole connection may take.
    pub patience: Duration,
}

/// One connection that is over.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The first is 0; it is also the seed of what was sent.
    pub number: u64,
    /// Index into [`Plan::services`].
    pub service: usize,
    /// When its name was looked up.
    pub began: Instant,
    /// From there to its end.
    pub took: Duration,
    /// Our end's address. No two connections of one traffic have the same, so that others can tell them apart by it.
    pub local: Option<SocketAddr>,
    /// What `Server` said in the answer, if one came whole.
    pub by: Option<String>,
    /// In which step it failed, and how; none: everything came back and the connection ended in order.
    pub failure: Option<String>,
}

#[derive(Debug, Default)]
struct Books {
    begun: u64,
    over: Vec<Connection>,
}

/// Traffic that runs until it is dropped.
#[derive(Debug)]
pub struct Steady {
    books: Arc<Watched<Books>>,
    stop: CancellationToken,
    /// Connections that began before this are given up.
    give_up: watch::Sender<Option<Instant>>,
}

impl Steady {
    /// Starts it on `host`.
    pub fn start(host: &Host, plan: Plan) -> Self {
        let books = Arc::new(Watched::<Books>::default());
        let stop = CancellationToken::new();
        let (give_up, given_up) = watch::channel(None);
        let run = run(Arc::new(plan), Arc::clone(&books), stop.clone(), given_up);
        host.spawn(run);
        Self {
            books,
            stop,
            give_up,
        }
    }

    /// All connections that are over.
    pub fn over(&self) -> Vec<Connection> {
        self.books.look(|books| books.over.clone())
    }

    /// Those of them that failed.
    pub fn failed(&self) -> Vec<Connection> {
        let failed = |connection: &Connection| connection.failure.is_some();
        self.over().into_iter().filter(failed).collect()
    }

    /// Waits until `n` connections that begin from now on have come to their end.
    #[track_caller]
    pub fn wait_more(&self, n: u64) {
        let from = self.books.look(|books| books.begun);
        self.books
            .wait(&format!("{n} connections more"), BOUND, |books| {
                let newer = |connection: &&Connection| connection.number >= from;
                (books.over.iter().filter(newer).count() as u64 >= n).then_some(())
            });
    }

    /// Waits until all connections that have begun by now are over.
    #[track_caller]
    pub fn wait_begun(&self) {
        let until = self.books.look(|books| books.begun);
        let what = format!("the first {until} connections to be over");
        self.books.wait(&what, BOUND, |books| {
            let older = |connection: &&Connection| connection.number < until;
            (books.over.iter().filter(older).count() as u64 == until).then_some(())
        });
    }

    /// Resets what is still open of those that began before `when`. They count as failed.
    pub fn give_up(&self, when: Instant) {
        self.give_up.send_replace(Some(when));
    }

    /// Begins no more, waits until all are over and returns them.
    #[track_caller]
    pub fn stop(&self) -> Vec<Connection> {
        self.stop.cancel();
        self.books
            .wait("all connections to be over", BOUND, |books| {
                (books.over.len() as u64 == books.begun).then(|| books.over.clone())
            })
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn run(
    plan: Arc<Plan>,
    books: Arc<Watched<Books>>,
    stop: CancellationToken,
    given_up: watch::Receiver<Option<Instant>>,
) {
    let mut ticks = interval(plan.pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        // A stop that comes at the same moment as a tick.
        if stop.is_cancelled() {
            return;
        }
        let number = books.update(|books| {
            books.begun += 1;
            books.begun - 1
        });
        let (plan, books) = (Arc::clone(&plan), Arc::clone(&books));
        let given_up = given_up.clone();
        tokio::spawn(async move {
            let connection = connection(&plan, number, given_up).await;
            books.update(|books| books.over.push(connection));
        });
    }
}

async fn connection(
    plan: &Plan,
    number: u64,
    mut given_up: watch::Receiver<Option<Instant>>,
) -> Connection {
    let mut connection = Connection {
        number,
        service: number as usize % plan.services.len(),
        began: Instant::now(),
        took: Duration::ZERO,
        local: None,
        by: None,
        failure: None,
    };
    let mut step = "look-up";
    let began = connection.began;
    let whole = within(plan.patience, push(plan, &mut connection, &mut step));
    let given_up = given_up.wait_for(|when| when.is_some_and(|when| began < when));
    let result = tokio::select! {
        result = whole => result,
        Ok(_) = given_up => Err(io::Error::other("given up")),
    };
    if let Err(error) = result {
        connection.failure = Some(format!("{step}: {error}"));
    }
    connection.took = connection.began.elapsed();
    connection
}

async fn push(plan: &Plan, connection: &mut Connection, step: &mut &str) -> io::Result<()> {
    let service = &plan.services[connection.service];
    let addresses = look_up(plan.resolver, &service.name).await?;
    let address = addresses.first().ok_or(io::ErrorKind::NotFound)?;
    *step = "connect";
    let socket = TcpSocket::new_v4()?;
    // Else the kernel gives one port to several connections, as long as they lead to different places.
    let port = FIRST_PORT + (connection.number % PORTS) as u16;
    // Of an earlier traffic, perhaps; the kernel remembers for a minute.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(plan.from, port))?;
    connection.local = Some(socket.local_addr()?);
    let stream = socket
        .connect(SocketAddr::new(*address, service.port))
        .await?;
    stream.set_nodelay(true)?;
    // Who gives up leaves nothing behind: what is closed before its end is reset.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let mut stream = match &service.tls {
        None => exchange(stream, plan, connection, step).await?,
        Some(identity) => {
            *step = "handshake";
            let name = ServerName::try_from(service.name.clone()).map_err(io::Error::other)?;
            let stream = identity.connector().connect(name, stream).await?;
            let stream = exchange(stream, plan, connection, step).await?;
            stream.into_inner().0
        }
    };
    // TLS says goodbye before TCP does.
    if stream.read(&mut [0; 1]).await? > 0 {
        return Err(io::Error::other("more than a goodbye"));
    }
    Ok(())
}

/// Asks, checks the answer and ends the stream, whose other end must then end it too.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    plan: &Plan,
    connection: &mut Connection,
    step: &mut &str,
) -> io::Result<S> {
    *step = "request";
    let service = &plan.services[connection.service];
    let body = Pattern::new(connection.number).bytes(0, plan.bytes);
    let request = Message::post(&service.name, &service.path, body);
    stream.write_all(&request.bytes()).await?;
    stream.flush().await?;
    *step = "answer";
    let mut messages = Messages::default();
    let answer = messages.read(&mut stream).await?;
    let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
    if answer.second_word() != "200" {
        return Err(io::Error::other(answer.head));
    }
    if answer.body != request.body || !messages.is_empty() {
        return Err(io::Error::other("not what was sent"));
    }
    connection.by = answer.field("server").map(str::to_owned);
    *step = "end";
    stream.shutdown().await?;
    if stream.read(&mut [0; 1]).await? > 0 {
        return Err(io::Error::other("more than was asked for"));
    }
    Ok(stream)
}

/// The IPv4 addresses of a name, as an agent's resolver asks for them.
async fn look_up(server: SocketAddr, name: &str) -> io::Result<Vec<IpAddr>> {
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(server).await?;
    let name = Name::from_ascii(format!("{name}.")).map_err(io::Error::other)?;
    let mut question = Question::query();
    question.add_query(Query::query(name, RecordType::A));
    socket
        .send(&question.to_vec().map_err(io::Error::other)?)
        .await?;
    let mut answer = [0; 4096];
    let n = socket.recv(&mut answer).await?;
    let answer = Question::from_vec(&answer[..n]).map_err(io::Error::other)?;
    let addresses = answer
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            _ => None,
        });
    Ok(addresses.collect())
}
