//! Just enough of an HTTP/1 server to be posted to: it reads requests with `Content-Length`, counts them by path, and answers 200.

use std::io;

use tokio::net::TcpStream;

use super::{
    origin::Meter,
    stream::{self, End},
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
const LAST_ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";
/// No agent of ours sends a larger head.
const MAX_HEAD: usize = 64 * 1024;

/// Serves one connection until the client ends it or asks for that.
pub(super) async fn serve(stream: &TcpStream, meter: &Meter) -> io::Result<()> {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = bytes.split_off(end + 4);
                break std::mem::replace(&mut bytes, rest);
            }
            if bytes.len() > MAX_HEAD {
                return Err(io::Error::other("no end of the request's head"));
            }
            if !more(stream, meter, &mut bytes).await? {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&head).into_owned();
        let length: usize = field(&head, "content-length")
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        let mut body = bytes.len().min(length);
        bytes.drain(..body);
        while body < length {
            if !more(stream, meter, &mut bytes).await? {
                return Ok(());
            }
            let n = bytes.len().min(length - body);
            bytes.drain(..n);
            body += n;
        }
        let path = head.split(' ').nth(1).unwrap_or("?");
        meter.requested(path, length as u64);
        let last =
            field(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let answer = if last { LAST_ANSWER } else { ANSWER };
        stream::write(stream, answer, |n| meter.sent(n)).await?;
        if last {
            return Ok(());
        }
    }
}

/// Reads once; false at the end of the stream.
async fn more(stream: &TcpStream, meter: &Meter, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let read = stream::read(stream, |piece| {
        meter.received(piece);
        bytes.extend_from_slice(piece);
    })
    .await?;
    if read.is_none() {
        meter.ended(End::Fin);
    }
    Ok(read.is_some())
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
