//! Asking a relay that runs, through its admin socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::Pid;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Error, ExitCode};
use crate::admin::WARNING;

/// Longest wait for a relay to take the connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Longest wait for the whole answer: beyond what a relay lets a connection last.
const ANSWER: Duration = Duration::from_secs(65);

/// Most that an answer may be.
const LONGEST: u64 = 512 << 20;

/// A relay's socket.
#[derive(Debug)]
pub(super) struct Client(PathBuf);

/// What became of a question.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It was answered.
    Answered(Vec<u8>),
    /// Nobody is there: the relay does not run, or this user cannot reach it.
    Nobody(io::Error),
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// The process that listens there; `None` where nobody does.
    pub(super) fn process(&self) -> Option<Pid> {
        let stream = connect(&self.0).ok()?;
        Some(socket_peercred(&stream).ok()?.pid)
    }

    /// Asks, and reads the answer as text, or why there is none: for a question whose answer may be no.
    pub(super) fn text(&self, target: &str) -> Result<String, String> {
        match self.ask("GET", target) {
            Ok(Outcome::Answered(body)) => Ok(String::from_utf8_lossy(&body).trim_end().to_owned()),
            Ok(Outcome::Nobody(error)) => Err(error.to_string()),
            Err(Error::Books { what, .. }) => Err(what),
            Err(_) => Err("it does not answer".to_owned()),
        }
    }

    /// Asks, and reads what was asked for as JSON; `Err` within `Ok` where nobody is there.
    pub(super) fn json<T: DeserializeOwned>(
        &self,
        method: &str,
        target: &str,
    ) -> Result<Result<T, io::Error>, Error> {
        match self.ask(method, target)? {
            Outcome::Nobody(error) => Ok(Err(error)),
            Outcome::Answered(body) => {
                let read = serde_json::from_slice(&body);
                read.map(Ok).map_err(|error| {
                    self.failed(&format!(
                        "its answer makes no sense ({error}); is it of another version?"
                    ))
                })
            }
        }
    }

    fn ask(&self, method: &str, target: &str) -> Result<Outcome, Error> {
        let mut stream = match connect(&self.0) {
            Ok(stream) => stream,
            Err(error) => return Ok(Outcome::Nobody(error)),
        };
        let answer = exchange(&mut stream, method, target);
        let answer = answer.map_err(|error| self.failed(&error.to_string()))?;
        let (status, body, warning) = self.split(&answer)?;
        if let Some(warning) = warning {
            // Beside the answer, which may be read by a program. Nobody to tell it to is no reason to keep the answer back.
            let _ = writeln!(io::stderr(), "tollgate: {warning}");
        }
        if status == 200 {
            return Ok(Outcome::Answered(body.to_vec()));
        }
        let said = String::from_utf8_lossy(body).trim_end().to_owned();
        Err(Error::Books {
            code: match status {
                400 | 405 => ExitCode::Usage,
                403 => ExitCode::Permission,
                422 => ExitCode::Config,
                424 => ExitCode::NoConfig,
                500 => ExitCode::Internal,
                _ => ExitCode::Unavailable,
            },
            what: said,
        })
    }

    /// Status, body, and what is said beside it.
    fn split<'a>(&self, answer: &'a [u8]) -> Result<(u16, &'a [u8], Option<String>), Error> {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Response::new(&mut headers);
        let no_http = || self.failed("what it says is no HTTP: does something else listen there?");
        let Ok(httparse::Status::Complete(body)) = head.parse(answer) else {
            return Err(no_http());
        };
        let value = |name: &str| {
            let mut headers = head.headers.iter();
            let header = headers.find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok()
        };
        let length = value("content-length").and_then(|length| length.parse().ok());
        let warning = value(WARNING).map(str::to_owned);
        let body = &answer[body..];
        if length.is_none_or(|length: usize| body.len() != length) {
            return Err(self.failed("its answer was cut off; ask again"));
        }
        Ok((head.code.ok_or_else(no_http)?, body, warning))
    }

    fn failed(&self, what: &str) -> Error {
        Error::Books {
            code: ExitCode::Unavailable,
            what: format!("the relay at {}: {what}", self.0.display()),
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(CONNECT))?; // bounds connect(2) of a unix socket, too
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

fn exchange(stream: &mut UnixStream, method: &str, target: &str) -> io::Result<Vec<u8>> {
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: tollgate\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let deadline = Instant::now() + ANSWER;
    let mut answer = Vec::new();
    let mut part = vec![0; 256 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {ANSWER:?}"),
            ));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(answer),
            Ok(n) => answer.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if answer.len() as u64 > LONGEST {
            return Err(io::Error::other("its answer does not end; ask for less"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// What is made of an answer.
    fn of(answer: &'static [u8]) -> Result<Result<Vec<u32>, io::Error>, Error> {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).expect("a socket");
        let relay = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("a request");
                asked.push(byte[0]);
            }
            stream.write_all(answer).expect("it reads");
        });
        let made = Client::new(&path).json("GET", "/x");
        relay.join().expect("it answers");
        made
    }

    #[test]
    fn an_answer_is_read_whole_or_not_at_all() {
        let whole = of(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n[1, 2]");
        assert_eq!(whole.expect("an answer").expect("somebody"), [1, 2]);
        for (answer, said) in [
            (
                &b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n[1, 2]"[..],
                "cut off",
            ),
            (b"HTTP/1.1 200 OK\r\n\r\n[1, 2]", "cut off"),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n[",
                "makes no sense",
            ),
            (b"220 mail.example ESMTP\r\n", "no HTTP"),
            (b"", "no HTTP"),
        ] {
            match of(answer) {
                Err(Error::Books {
                    code: ExitCode::Unavailable,
                    what,
                }) => assert!(what.contains(said), "{what}"),
                other => panic!("{said}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_a_relay_refuses_ends_with_a_code_of_its_own() {
        for (answer, expected) in [
            (
                &b"HTTP/1.1 403 Forbidden\r\ncontent-length: 3\r\n\r\nno\n"[..],
                ExitCode::Permission,
            ),
            (
                b"HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\n\r\nno\n",
                ExitCode::Usage,
            ),
            (
                b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\nno\n",
                ExitCode::Unavailable,
            ),
            (
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nno\n",
                ExitCode::Unavailable,
            ),
        ] {
            match of(answer) {
                Err(Error::Books { code, what }) => assert_eq!((code, &*what), (expected, "no")),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_socket_without_a_relay_is_nobody() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("s");
        let nobody = || {
            Client::new(&path)
                .json::<()>("GET", "/")
                .expect("no answer is none")
        };
        assert_eq!(
            nobody().expect_err("nobody").kind(),
            io::ErrorKind::NotFound
        );
        drop(UnixListener::bind(&path).expect("a socket"));
        assert_eq!(
            nobody().expect_err("nobody").kind(),
            io::ErrorKind::ConnectionRefused
        );
    }
}
