//! Just enough of HTTP/1 for agents, load balancers and origins to speak it: messages with `Content-Length`, found in a stream of bytes.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// No agent of ours sends a larger head.
const MAX_HEAD: usize = 64 * 1024;
/// Nor a larger body.
const MAX_BODY: usize = 16 << 20;

/// One request or answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// First line and fields, up to and with the empty line.
    pub head: String,
    /// As long as `Content-Length` said.
    pub body: Vec<u8>,
}

impl Message {
    /// A request that posts `body`.
    pub fn post(host: &str, path: &str, body: Vec<u8>) -> Self {
        let length = body.len();
        Self {
            head: format!(
                "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n"
            ),
            body,
        }
    }

    /// An answer, with more `fields` (each `"Key: value\r\n"`) in its head.
    pub fn answer(status: &str, fields: &str, body: Vec<u8>) -> Self {
        let length = body.len();
        Self {
            head: format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {length}\r\n\r\n"),
            body,
        }
    }

    /// As it is sent.
    pub fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), &self.body].concat()
    }

    /// The value of a field of the head.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    /// A request's path, an answer's status.
    pub fn second_word(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or("?")
    }

    /// Whether whoever sent it wants the connection to end with the answer.
    pub fn is_last(&self) -> bool {
        self.field("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// Finds messages in the bytes of a stream.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
}

impl Messages {
    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether nothing is left of what was fed.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next message, if all of it is there.
    ///
    /// # Errors
    /// When its head does not end, or promises a body of a size that nobody here sends.
    pub fn take(&mut self) -> io::Result<Option<Message>> {
        let end = self.bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let Some(end) = end.map(|at| at + 4) else {
            if self.bytes.len() > MAX_HEAD {
                return Err(io::Error::other("no end of the message's head"));
            }
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        let length: usize = field(&head, "content-length")
            .and_then(|value| value.parse().ok())
            .unwrap_or(0);
        if length > MAX_BODY {
            return Err(io::Error::other(format!("a body of {length} bytes")));
        }
        if self.bytes.len() < end + length {
            return Ok(None);
        }
        let rest = self.bytes.split_off(end + length);
        let body = std::mem::replace(&mut self.bytes, rest).split_off(end);
        Ok(Some(Message { head, body }))
    }

    /// Reads until the next message is there; `None` at the end of the stream.
    ///
    /// # Errors
    /// As [`take`](Self::take), those of the stream, and `UnexpectedEof` for an end within a message.
    pub async fn read(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> io::Result<Option<Message>> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            if stream.read_buf(&mut self.bytes).await? == 0 {
                return if self.bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!(
                            "the stream ended within a message of {} bytes",
                            self.bytes.len()
                        ),
                    ))
                };
            }
        }
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
