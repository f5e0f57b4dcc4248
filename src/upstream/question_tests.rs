use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::rc::Rc;
use std::thread;

use hickory_resolver::proto::op::{MessageType, OpCode};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{RData, Record};
use tokio::task::{LocalSet, spawn_blocking};

use super::*;

const NAME: &str = "cp.example.internal.";

fn asker(per_second: u32) -> Asker {
    Asker::new(NonZeroU32::new(per_second).unwrap(), Arc::default())
}

async fn look_up(asker: &Asker, servers: &[SocketAddr]) -> Result<Vec<IpAddr>, NoAnswer> {
    let name = Name::from_ascii(NAME).unwrap();
    let found = asker.look_up(servers, name, Kind::V4).await;
    found.map(|(addresses, _)| addresses)
}

/// A socket in which questions stay, and where it is.
fn silent() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Where each question that came so far was sent from.
fn came_from(socket: &UdpSocket) -> Vec<SocketAddr> {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 512];
    let questions = std::iter::from_fn(|| socket.recv_from(&mut buffer).ok());
    questions.map(|(_, from)| from).collect()
}

/// A server that says the same to every question, for as long as the process lives, and how many it had.
pub(in super::super) fn server(says: ResponseCode) -> (SocketAddr, Arc<AtomicU64>) {
    let (socket, address) = silent();
    let asked = Arc::new(AtomicU64::new(0));
    let count = asked.clone();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::Relaxed);
            let reply = reply(&buffer[..n], says);
            socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
        }
    });
    (address, asked)
}

fn reply(question: &[u8], says: ResponseCode) -> Message {
    let question = Message::from_vec(question).unwrap();
    let mut reply = Message::new(question.id, MessageType::Response, OpCode::Query);
    reply.add_query(question.queries[0].clone());
    reply.metadata.response_code = says;
    if says == ResponseCode::NoError {
        let name = question.queries[0].name().clone();
        reply.add_answer(Record::from_rdata(name, 60, RData::A(A::new(10, 0, 0, 1))));
    }
    reply
}

const FOUND: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1))];

fn count(asker: &Asker) -> u64 {
    asker.queries().load(Ordering::Relaxed)
}

/// In a time that goes on when everyone waits: a dead server costs a test nothing.
#[tokio::test(start_paused = true)]
async fn each_try_has_a_socket_and_a_source_port_of_its_own() {
    let (socket, server) = silent();
    let asker = asker(1000);
    let began = Instant::now();
    let error = look_up(&asker, &[server]).await.unwrap_err();
    assert_eq!(error.to_string(), format!("{server} did not answer"));
    let all: Duration = PATIENCE.iter().sum();
    assert!((all..all + Duration::from_millis(50)).contains(&began.elapsed()));
    look_up(&asker, &[server]).await.unwrap_err();
    let ports: Vec<u16> = came_from(&socket).iter().map(SocketAddr::port).collect();
    let others: BTreeSet<u16> = ports.iter().copied().collect();
    assert_eq!(ports.len(), 2 * PATIENCE.len(), "one packet a try");
    assert!(others.len() >= 5, "by chance one may come again: {ports:?}");
    assert_eq!(count(&asker), 6);
}

#[tokio::test(start_paused = true)]
async fn all_tries_together_are_bounded_however_many_servers_there_are() {
    let servers = [(); 20].map(|()| silent());
    let addresses = servers.each_ref().map(|(_, address)| *address);
    let began = Instant::now();
    let asker = asker(1000);
    look_up(&asker, &addresses).await.unwrap_err();
    assert_eq!(
        count(&asker),
        15,
        "one second each, and for the others none"
    );
    let bound = LOOKUP + Duration::from_millis(100);
    assert!((LOOKUP..bound).contains(&began.elapsed()));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_turn_takes_nothing_from_the_time_for_an_answer() {
    let (socket, server) = silent();
    let asker = Rc::new(asker(1));
    let began = Instant::now();
    let mut all = LocalSet::new();
    for _ in 0..40 {
        let asker = asker.clone();
        all.spawn_local(async move { look_up(&asker, &[server]).await.unwrap_err() });
    }
    (&mut all).await;
    // 120 packets at one a second: each look-up waited far longer than it may take by itself, and had all its tries.
    assert_eq!(came_from(&socket).len(), 120);
    assert_eq!(count(&asker), 120);
    let took = began.elapsed().as_secs();
    assert!((119..130).contains(&took), "{took} s");
}

#[tokio::test]
async fn no_more_packets_a_second_than_allowed() {
    let (socket, server) = silent();
    let asker = Rc::new(asker(50));
    let mut all = LocalSet::new();
    for _ in 0..100 {
        let asker = asker.clone();
        all.spawn_local(async move { drop(look_up(&asker, &[server]).await) });
    }
    // A true second, or what it becomes on a busy machine: it is what is tested.
    let began = std::time::Instant::now();
    let second = timeout(Duration::from_secs(1), &mut all).await;
    assert!(second.is_err(), "they go on");
    let came = came_from(&socket).len() as f64;
    let most = 1.0 + 50.0 * began.elapsed().as_secs_f64();
    assert!((1.0..=most).contains(&came), "{came}, not {most}");
}

#[tokio::test]
async fn the_second_server_is_asked_where_the_first_is_silent_and_first_from_then_on() {
    let (silent, first) = silent();
    let (second, asked) = server(ResponseCode::NoError);
    let asker = asker(1000);
    for n in 1..=3 {
        assert_eq!(look_up(&asker, &[first, second]).await.unwrap(), FOUND);
        assert_eq!(asked.load(Ordering::Relaxed), n);
    }
    assert_eq!(came_from(&silent).len(), 1);
    lock(&asker.silent).insert(first, Instant::now()); // half a minute later
    assert_eq!(asker.in_line(&[first, second]), [first, second]);
}

#[tokio::test]
async fn the_second_server_is_asked_where_the_first_fails_and_neither_twice() {
    for code in [ResponseCode::ServFail, ResponseCode::Refused] {
        let (first, asked) = server(code);
        let (second, _) = server(ResponseCode::NoError);
        let asker = asker(1000);
        assert_eq!(look_up(&asker, &[first, second]).await.unwrap(), FOUND);
        assert_eq!(count(&asker), 2);
        let error = look_up(&asker, &[first]).await.unwrap_err().to_string();
        let said = match code {
            ResponseCode::ServFail => "SERVFAIL",
            _ => "REFUSED",
        };
        assert_eq!(error, format!("{first} answered {said}"));
        assert_eq!(
            asked.load(Ordering::Relaxed),
            2,
            "it would say the same again"
        );
    }
}

#[tokio::test]
async fn who_says_that_there_is_no_such_name_is_believed_when_no_other_knows_better() {
    let (without, _) = server(ResponseCode::NXDomain);
    let (with, _) = server(ResponseCode::NoError);
    let (broken, _) = server(ResponseCode::ServFail);
    let asker = asker(1000);
    assert_eq!(look_up(&asker, &[without, with]).await.unwrap(), FOUND);
    let error = look_up(&asker, &[without, broken]).await.unwrap_err();
    assert!(matches!(error, NoAnswer::NoName { server, .. } if server == without));
}

#[tokio::test]
async fn bytes_that_are_no_answer_are_asked_about_again() {
    let (socket, server) = silent();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        let mut garble = |n| {
            for _ in 0..n {
                let (_, from) = socket.recv_from(&mut buffer).unwrap();
                let bytes = [&buffer[..2], &[0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0, 0xff]].concat();
                socket.send_to(&bytes, from).unwrap();
            }
        };
        garble(2);
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        let reply = reply(&buffer[..n], ResponseCode::NoError);
        socket.send_to(&reply.to_vec().unwrap(), from).unwrap();
    });
    let asker = asker(1000);
    assert_eq!(look_up(&asker, &[server]).await.unwrap(), FOUND);
    assert_eq!(count(&asker), 3);
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_asked_for_by_tcp() {
    let (socket, server) = silent();
    let listener = TcpListener::bind(server).unwrap();
    let serving = thread::spawn(move || {
        let mut buffer = [0; 512];
        let (n, from) = socket.recv_from(&mut buffer).unwrap();
        let mut cut = reply(&buffer[..n], ResponseCode::NoError);
        cut.metadata.truncation = true;
        cut.answers.clear();
        socket.send_to(&cut.to_vec().unwrap(), from).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let n = usize::from(u16::from_be_bytes(length));
        stream.read_exact(&mut buffer[..n]).unwrap();
        let whole = reply(&buffer[..n], ResponseCode::NoError).to_vec().unwrap();
        let length = u16::try_from(whole.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length, &whole[..]].concat()).unwrap();
        // It is closed without waiting for a next question.
        assert_eq!(stream.read(&mut buffer).unwrap(), 0);
    });
    let asker = asker(1000);
    assert_eq!(look_up(&asker, &[server]).await.unwrap(), FOUND);
    assert_eq!(count(&asker), 2);
    let served = spawn_blocking(|| serving.join());
    served.await.unwrap().unwrap();
}
