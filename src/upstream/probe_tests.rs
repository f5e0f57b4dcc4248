//! What each check takes for good, what it says of anything else, and how it leaves.

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream as Served};
use std::rc::Rc;
use std::thread::{self, JoinHandle};

use super::*;
use crate::config::CrcPolicy;
use crate::proxy_protocol::decode::{Rules, decode};
use crate::proxy_protocol::header::Command;

/// Long enough for a machine that stands still for a while: passed only by a test that fails.
const LONG: Duration = Duration::from_secs(20);

/// A server on loopback that takes one connection, and what became of it.
fn server<T: Send + 'static>(
    serve: impl FnOnce(&mut Served) -> io::Result<T> + Send + 'static,
) -> (SocketAddr, JoinHandle<io::Result<T>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(LONG))?;
        serve(&mut stream)
    });
    (address, served)
}

/// Reads all until the end, which must be an orderly one.
fn to_end(stream: &mut Served) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    stream.read_to_end(&mut read)?;
    Ok(read)
}

/// Reads the head of a request.
fn request(stream: &mut Served) -> io::Result<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        read.extend(byte);
    }
    String::from_utf8(read).map_err(io::Error::other)
}

fn check(check: Check) -> HealthCheck {
    HealthCheck {
        check,
        interval: LONG,
        timeout: LONG,
        rise: 2,
        fall: 3,
        port: None,
    }
}

fn http() -> HealthCheck {
    check(Check::Http {
        path: "/healthz".into(),
        host: None,
        status: (200, 399),
    })
}

fn exchange(send: &str, expect: &str) -> HealthCheck {
    check(Check::Exchange {
        send: send.into(),
        expect: expect.into(),
    })
}

async fn asked(
    address: SocketAddr,
    check: &HealthCheck,
    proxy: SendProxy,
) -> Result<Duration, ProbeError> {
    let options = SocketOptions::default();
    probe(address, "cp.example:443", check, proxy, &options).await
}

/// Asks a server for its status, and returns what came of it and how the server saw it end.
async fn status_from(answer: &'static [u8]) -> (Result<Duration, ProbeError>, io::Result<()>) {
    let (address, served) = server(move |stream| {
        request(stream)?;
        stream.write_all(answer)?;
        stream.shutdown(Shutdown::Write)?;
        to_end(stream).map(drop)
    });
    let asked = asked(address, &http(), SendProxy::Off).await;
    (asked, served.join().unwrap())
}

#[track_caller]
fn said(result: Result<Duration, ProbeError>) -> String {
    result.expect_err("not good").to_string()
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

#[tokio::test]
async fn a_tcp_check_is_a_connection_that_ends_in_order() {
    let (address, served) = server(to_end);
    let took = asked(address, &check(Check::Tcp), SendProxy::Off)
        .await
        .unwrap();
    assert!(took < LONG);
    assert_eq!(served.join().unwrap().unwrap(), b"");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_not_reset() {
    let (address, served) = server(|stream| {
        // After our end: nobody waits for it any more, and yet it must not be answered by a reset.
        assert_eq!(stream.read(&mut [0])?, 0);
        stream.write_all(b"220 welcome\r\n")?;
        stream.shutdown(Shutdown::Write)?;
        while socket2::SockRef::from(&*stream).take_error()?.is_none() {
            let queued = crate::sys::socket::unacknowledged(&*stream)?;
            if queued == 0 {
                return Ok(());
            }
            thread::yield_now();
        }
        Err(io::ErrorKind::ConnectionReset.into())
    });
    asked(address, &check(Check::Tcp), SendProxy::Off)
        .await
        .unwrap();
    served.join().unwrap().unwrap();
}

#[tokio::test]
async fn a_header_for_no_client_goes_first() {
    for (proxy, send) in [(SendProxy::V1, "PING"), (SendProxy::V2, "ABC")] {
        let (address, served) = server(|stream| {
            stream.write_all(b"+PONG\r\n")?;
            to_end(stream)
        });
        asked(address, &exchange(send, "PONG"), proxy)
            .await
            .unwrap();
        let read = served.join().unwrap().unwrap();
        if proxy == SendProxy::V1 {
            assert_eq!(read, b"PROXY UNKNOWN\r\nPING");
            continue;
        }
        let rules = Rules {
            max_header: 4096,
            crc: CrcPolicy::Verify,
        };
        let header = decode(&read, rules).unwrap().unwrap();
        assert_eq!(header.command, Command::Local);
        assert_eq!(&read[header.len..], b"ABC");
    }
}

#[tokio::test]
async fn an_exchange_is_good_when_the_bytes_come_among_others() {
    let (address, served) = server(|stream| {
        let mut question = [0; 6];
        stream.read_exact(&mut question)?;
        stream.write_all(b"PONK PONG and more")?;
        to_end(stream)?;
        Ok(question)
    });
    let check = exchange("PING\r\n", "PONG");
    asked(address, &check, SendProxy::Off).await.unwrap();
    assert_eq!(&served.join().unwrap().unwrap(), b"PING\r\n");
}

#[tokio::test]
async fn an_answer_in_pieces_of_any_size_is_the_same_answer() {
    let at = "127.0.0.1:1".parse().unwrap();
    let head = b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 204 x\r\n";
    for size in 1..=20 {
        // Whoever has read enough goes away: then the rest cannot be written, and need not be.
        let (mut near, mut far) = tokio::io::duplex(size);
        let reading = async move { read_expected(&mut near, at, b"PONG H").await };
        let writing = async move { far.write_all(b"PONK PONG HTTP").await };
        let (found, _) = tokio::join!(reading, writing);
        found.unwrap();
        let (mut near, mut far) = tokio::io::duplex(size);
        let reading = async move { read_status(&mut near, at).await };
        let writing = async move { far.write_all(head).await };
        let (status, _) = tokio::join!(reading, writing);
        assert_eq!(status.unwrap(), 204);
    }
}

#[tokio::test]
async fn an_exchange_is_bad_when_the_bytes_come_too_late_or_never() {
    for (before, found) in [(ANSWER - 4, true), (ANSWER - 3, false)] {
        let (address, _served) = server(move |stream| {
            stream.write_all(&vec![b'x'; before])?;
            stream.write_all(b"PONG")?;
            to_end(stream)
        });
        let asked = asked(address, &exchange("", "PONG"), SendProxy::Off).await;
        assert_eq!(asked.is_ok(), found, "{before}");
        if let Err(error) = asked {
            assert_says(&error.to_string(), &["does not contain \"PONG\"", "xxx…"]);
        }
    }
    let (address, _served) = server(|stream| stream.write_all(b"-ERR loading\r\n"));
    let text = said(asked(address, &exchange("", "PONG"), SendProxy::Off).await);
    assert_says(&text, &["does not contain \"PONG\"", "-ERR loading\\r\\n"]);
    let (address, _served) = server(|_| Ok(()));
    let text = said(asked(address, &exchange("", "PONG"), SendProxy::Off).await);
    assert_says(&text, &["closes the connection", "it said nothing"]);
}

#[tokio::test]
async fn a_get_is_good_by_its_status_alone() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..],
        b"HTTP/1.0 204\r\n\r\n",
        b"HTTP/1.1 301 \n\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        // A body that nobody asked for is taken off the server's hands.
        &[
            b"HTTP/1.1 399 x\r\n\r\n".as_slice(),
            [b'x'; 300_000].as_slice(),
        ]
        .concat()
        .leak()[..],
    ] {
        let (asked, ended) = status_from(answer).await;
        let what = String::from_utf8_lossy(&answer[..answer.len().min(60)]);
        assert!(asked.is_ok(), "{what}: {asked:?}");
        assert!(ended.is_ok(), "{what}: {ended:?}");
    }
}

#[tokio::test]
async fn a_get_names_host_and_path_and_asks_for_the_end() {
    for (host, wanted) in [
        (None, "cp.example:443"),
        (Some("other.example"), "other.example"),
    ] {
        let (address, served) = server(|stream| {
            let request = request(stream)?;
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            Ok(request)
        });
        let check = check(Check::Http {
            path: "/a?b=c".into(),
            host: host.map(Arc::from),
            status: (200, 200),
        });
        asked(address, &check, SendProxy::Off).await.unwrap();
        let request = served.join().unwrap().unwrap();
        assert!(request.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{request}");
        let lines: Vec<&str> = request.lines().collect();
        assert!(
            lines.contains(&format!("Host: {wanted}").as_str()),
            "{request}"
        );
        assert!(lines.contains(&"Connection: close"), "{request}");
    }
}

#[tokio::test]
async fn a_get_is_bad_by_its_status_or_because_it_is_none() {
    let (asked, _) = status_from(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").await;
    assert_says(&said(asked), &["status 503", "200 to 399"]);
    for answer in [
        &b"\x15\x03\x01\x00\x02\x02\x46"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.1 99 x\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
    ] {
        let (asked, _) = status_from(answer).await;
        assert_says(&said(asked), &["is no HTTP/1; it said \"", "health.port"]);
    }
    let (asked, _) = status_from(b"HTTP/1.1 200 O").await;
    assert_says(
        &said(asked),
        &["before a whole answer; it said \"HTTP/1.1 200 O\""],
    );
}

#[tokio::test]
async fn a_head_without_end_is_read_so_far_and_no_further() {
    let (address, _served) = server(|stream| {
        stream.write_all(b"HTTP/1.1 200 ")?;
        // Ends by the other side's going away.
        while stream.write_all(&[b'x'; 1024]).is_ok() {}
        Ok(())
    });
    let text = said(asked(address, &http(), SendProxy::Off).await);
    assert_says(&text, &["is no HTTP/1", "HTTP/1.1 200 xxx"]);
}

#[tokio::test]
async fn another_port_may_be_asked() {
    let (address, served) = server(to_end);
    let check = HealthCheck {
        port: Some(address.port()),
        ..check(Check::Tcp)
    };
    let elsewhere = SocketAddr::new(address.ip(), 1);
    asked(elsewhere, &check, SendProxy::Off).await.unwrap();
    served.join().unwrap().unwrap();
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = listener.local_addr().unwrap();
    drop(listener);
    let error = asked(refused, &check(Check::Tcp), SendProxy::Off)
        .await
        .unwrap_err();
    assert!(!error.is_ours());
    assert_says(
        &error.to_string(),
        &["cannot connect to 127.0.0.1", "nothing listens there"],
    );

    let soon = HealthCheck {
        timeout: Duration::from_millis(100),
        ..exchange("PING", "PONG")
    };
    // In a queue of one with two in it, a SYN gets no answer.
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _first = Served::connect(address).unwrap();
    let mut last = Ok(LONG);
    for _ in 0..4 {
        last = asked(address, &soon, SendProxy::Off).await;
        if matches!(last, Err(ProbeError::Unanswered { .. })) {
            break;
        }
    }
    assert_says(&said(last), &["no answer within 100ms", "security groups"]);

    let (address, served) = server(to_end);
    let text = said(asked(address, &soon, SendProxy::Off).await);
    assert_says(&text, &["does not answer within 100ms", "TLS"]);
    // What is not good is reset at once: it may hold what we wait for, and we do not.
    let ended = served.join().unwrap().unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_server_that_breaks_the_connection_is_said_to() {
    let (address, served) = server(|stream| {
        stream.read_exact(&mut [0; 4])?;
        socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))
    });
    let text = said(asked(address, &exchange("PING", "PONG"), SendProxy::Off).await);
    served.join().unwrap().unwrap();
    assert_says(&text, &["breaks the connection", "reset"]);
}

#[tokio::test]
async fn a_server_that_never_parts_is_left() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (address, served) = server(move |stream| {
        stream.write_all(b"PONG")?;
        let _ = held.recv();
        Ok(())
    });
    let check = exchange("", "PONG");
    let asked = timeout(LONG, asked(address, &check, SendProxy::Off)).await;
    assert!(asked.expect("left in time").is_ok());
    drop(release);
    served.join().unwrap().unwrap();
}

#[tokio::test]
async fn what_we_lack_is_not_the_addresss_fault() {
    let (address, _served) = server(to_end);
    let options = SocketOptions {
        source: Some("192.0.2.1".parse().unwrap()),
        ..SocketOptions::default()
    };
    let check = check(Check::Tcp);
    let asked = probe(address, "a:1", &check, SendProxy::Off, &options).await;
    let error = asked.unwrap_err();
    assert!(error.is_ours());
    assert_says(
        &error.to_string(),
        &["cannot ask 127.0.0.1", "192.0.2.1 is no address"],
    );
    // One thread waits for a client that never comes; it ends with this one.
    drop(Served::connect(address));
}

/// Runs a repeated question for so many reports; the times of the questions.
async fn times(interval: Duration, first: Duration, takes: Duration, n: usize) -> Vec<Duration> {
    let (began, asked) = (Instant::now(), Rc::new(RefCell::new(Vec::new())));
    let times = asked.clone();
    let ask = async || {
        times.borrow_mut().push(began.elapsed());
        tokio::time::sleep(takes).await;
    };
    let left = Cell::new(n);
    let (done, over) = tokio::sync::oneshot::channel();
    let mut done = Some(done);
    let report = |()| {
        left.set(left.get() - 1);
        if left.get() == 0 {
            let _ = done.take().expect("once").send(());
        }
    };
    tokio::select! {
        biased;
        _ = over => {}
        never = repeat(interval, first, ask, report) => match never {},
    }
    asked.take()
}

#[tokio::test(start_paused = true)]
async fn questions_come_at_intervals_that_differ_by_a_tenth_at_most() {
    let interval = Duration::from_secs(10);
    let asked = times(
        interval,
        Duration::from_secs(3),
        Duration::from_secs(4),
        200,
    )
    .await;
    let millisecond = Duration::from_millis(1); // tokio's clock ticks in them
    assert!(asked[0] >= Duration::from_secs(3) && asked[0] <= Duration::from_secs(3) + millisecond);
    let gaps: Vec<Duration> = asked.windows(2).map(|two| two[1] - two[0]).collect();
    let (least, most) = (gaps.iter().min().unwrap(), gaps.iter().max().unwrap());
    assert!(*least >= Duration::from_secs(9), "{least:?}");
    assert!(*most <= Duration::from_secs(11) + millisecond, "{most:?}");
    // 200 draws that leave a fifth of the range empty at an end happen once in 10^19 runs.
    assert!(*least < Duration::from_millis(9400) && *most > Duration::from_millis(10_600));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_longer_than_the_interval_is_waited_for() {
    let second = Duration::from_secs(1);
    let asked = times(second, Duration::ZERO, 5 * second, 3).await;
    assert!(
        asked[1] >= 5 * second && asked[2] >= 10 * second,
        "{asked:?}"
    );
}

#[test]
fn many_addresses_are_first_asked_one_after_the_other() {
    let interval = Duration::from_secs(10);
    assert_eq!(first_after(15, 16, interval), Duration::ZERO);
    assert_eq!(first_after(0, 100, interval), Duration::ZERO);
    assert_eq!(first_after(50, 100, interval), Duration::from_secs(5));
    assert!(first_after(99, 100, interval) < interval);
}

#[tokio::test]
async fn no_more_are_asked_at_once_than_there_are_places() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let places = Arc::new(Semaphore::new(2));
    let reports = Rc::new(Cell::new(0));
    let tasks = tokio::task::LocalSet::new();
    for _ in 0..6 {
        let subject = Subject {
            address,
            target: "a:1".into(),
            check: exchange("PING", "PONG"),
            proxy: SendProxy::Off,
            socket: SocketOptions::default(),
        };
        let reports = reports.clone();
        let places = places.clone();
        tasks.spawn_local(keep_probing(
            subject,
            Duration::ZERO,
            places,
            move |report| {
                report.unwrap();
                reports.set(reports.get() + 1);
            },
        ));
    }
    let serving = async {
        for answered in 0..3 {
            let (mut one, _) = listener.accept().await.unwrap();
            let (mut two, _) = listener.accept().await.unwrap();
            // Both have asked and wait: whoever had no place has not connected.
            for stream in [&mut one, &mut two] {
                stream.read_exact(&mut [0; 4]).await.unwrap();
            }
            // Time is the test here: nothing happens in it.
            let third = timeout(Duration::from_millis(20), listener.accept()).await;
            assert!(third.is_err(), "a third connection");
            for mut stream in [one, two] {
                stream.write_all(b"PONG").await.unwrap();
                stream.read_to_end(&mut Vec::new()).await.unwrap();
            }
            while reports.get() < 2 * (answered + 1) {
                tokio::task::yield_now().await;
            }
        }
    };
    let done = timeout(LONG, tasks.run_until(serving)).await;
    done.expect("all six are asked in time");
}
