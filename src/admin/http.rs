//! Just enough HTTP/1.1: small answers to small requests, each connection bounded in time and size.

use std::convert::Infallible;
use std::io::Cursor;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, join, split};
use tokio::time::timeout;
use tracing::debug;

/// Longest wait for a request's head.
const HEAD: Duration = Duration::from_secs(2);

/// Longest life of a connection, however many requests it brings.
const CONNECTION: Duration = Duration::from_secs(60);

/// Longest head.
const LONGEST_HEAD: usize = 16 * 1024;

/// A complete answer.
pub(super) struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: String,
    /// What whoever asked has to know of it, in one line of ASCII.
    warning: Option<HeaderValue>,
}

/// Where a warning stands in an answer.
pub const WARNING: &str = "tollgate-warning";

/// An answer for people.
#[derive(Debug)]
pub(super) struct Text(pub(super) StatusCode, pub(super) String);

/// An answer for programs.
pub(super) struct Json(pub(super) serde_json::Value);

impl Answer {
    /// For who wants to change something where one only reads.
    pub(super) fn reading_only() -> Self {
        Text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned()).into()
    }

    /// An answer for programs that is written already.
    pub(super) fn json(body: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/json",
            body,
            warning: None,
        }
    }

    /// The same answer with something said beside it.
    pub(super) fn but(mut self, warning: &str) -> Self {
        let plain = warning.replace(|c: char| !(' '..='~').contains(&c), " ");
        self.warning = HeaderValue::from_str(&plain).ok();
        self
    }

    /// An answer in Prometheus' text format.
    pub(super) fn metrics(body: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: prometheus::TEXT_FORMAT,
            body,
            warning: None,
        }
    }
}

impl From<Text> for Answer {
    fn from(Text(status, body): Text) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body,
            warning: None,
        }
    }
}

impl From<Json> for Answer {
    fn from(Json(value): Json) -> Self {
        Self::json(format!("{value:#}\n"))
    }
}

/// Whether a connection may bring several requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Requests {
    /// One, then it is closed.
    One,
    /// As many as fit into its time.
    Many,
}

/// Serves one connection; `first` was read from it already. Bodies of requests are not looked at.
pub(super) async fn serve<F: Future<Output = Answer>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    first: Vec<u8>,
    requests: Requests,
    answer: impl Fn(Parts) -> F,
) {
    let service = service_fn(async |request: Request<Incoming>| {
        let answer = answer(request.into_parts().0).await;
        let mut response = Response::new(Full::new(Bytes::from(answer.body)));
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
        if answer.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        if let Some(warning) = answer.warning {
            headers.insert(WARNING, warning);
        }
        Ok::<_, Infallible>(response)
    });
    let (read, write) = split(stream);
    let io = TokioIo::new(join(Cursor::new(first).chain(read), write));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(requests == Requests::Many)
        .header_read_timeout(HEAD)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(io, service);
    if let Ok(Err(error)) = timeout(CONNECTION, connection).await {
        debug!(%error, "admin or health connection ended");
    }
}
