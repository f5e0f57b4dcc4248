//! The admin socket: what only this machine may ask, and who asks is known (SO_PEERCRED).
//!
//! Anybody may connect and read, as on the admin port. Who changes something must be root or the relay's own user.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

use super::endpoints::connected;
use super::http::{self, Answer, Json, Requests, Text};
use super::live::{self, Asked, Looks, Sort};
use super::{View, orders, query, serve_each};
use crate::account::ledger::{AskError, Kind, Ledger, Query};

/// How long one is waited for who may listen there already.
const PATIENCE: Duration = Duration::from_secs(1);

/// The socket; its name goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: who takes the name from us keeps it.
    file: (u64, u64),
}

impl Socket {
    /// Listens at `path`, where a process that was killed may have left its own.
    ///
    /// # Errors
    /// When somebody listens there, when something else is there, and what the system says.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        clear(path)?;
        let listener = UnixListener::bind(path)?;
        // To connect is to write; what may be asked for depends on who asks.
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        let found = fs::symlink_metadata(path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (found.dev(), found.ino()),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves it, for ever.
    pub async fn serve(self, view: Arc<View>) {
        let accept = || self.listener.accept();
        let looks = Arc::new(Looks::default());
        serve_each(&accept, move |(stream, _): (UnixStream, _)| {
            let (view, looks) = (view.clone(), looks.clone());
            let caller = Caller::of(&stream);
            http::serve(stream, Vec::new(), Requests::Many, move |request| {
                let (view, looks) = (view.clone(), looks.clone());
                async move { answer(view, looks, caller, request).await }
            })
        })
        .await;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours = |found: fs::Metadata| (found.dev(), found.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(ours) {
            // Where it cannot be removed the next process finds that nobody listens.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens at.
fn clear(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        let what = "something that is no socket has this name: remove it, or write [admin] socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    match connect(path) {
        Ok(_) => {
            let what = "another relay listens there: end it, or give this one a run_dir of its own";
            Err(io::Error::new(io::ErrorKind::AddrInUse, what))
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

fn connect(path: &Path) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.set_write_timeout(Some(PATIENCE))?; // as connect(2) has it for AF_UNIX, where the queue is full
    socket.connect(&socket2::SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    /// May change things.
    trusted: bool,
}

impl Caller {
    fn of(stream: &UnixStream) -> Self {
        let ours = rustix::process::geteuid().as_raw();
        let trusted = |uid| uid == 0 || uid == ours;
        Self {
            // Who cannot be known is nobody.
            trusted: stream.peer_cred().is_ok_and(|who| trusted(who.uid())),
        }
    }
}

async fn answer(view: Arc<View>, looks: Arc<Looks>, caller: Caller, request: Parts) -> Answer {
    let path = request.uri.path();
    let answered = match (path, &request.method) {
        ("/endpoints", &(Method::GET | Method::HEAD)) => {
            let connected = |view: &View| {
                connected(&view.books.snapshot().accounts, &view.in_force().endpoints)
            };
            Ok(super::beside(&view, move |view| listed(&connected(view))).await)
        }
        ("/config", &(Method::GET | Method::HEAD)) => config(&view, caller),
        ("/top", &(Method::GET | Method::HEAD)) => top(&view, looks, request.uri.query()).await,
        ("/usage", &(Method::GET | Method::HEAD)) => usage(&view, request.uri.query()).await,
        ("/phase", &(Method::GET | Method::HEAD)) => Ok(Json(super::status::drain(&view)).into()),
        ("/anchor", &(Method::GET | Method::HEAD)) => anchor(&view),
        ("/usage/export", &Method::POST) if caller.trusted => {
            export(&view, request.uri.query()).await
        }
        (orders::RELOAD | orders::DRAIN | orders::UNDRAIN, &Method::POST) => {
            orders::carry_out(&view, caller.trusted, path, request.uri.query()).await
        }
        ("/usage/export", &Method::POST) => {
            let why = "only root and the relay's own user may export: what was exported is not exported again\n";
            Err(Text(StatusCode::FORBIDDEN, why.to_owned()))
        }
        _ => Ok(super::answer(&view, &request.method, path).await),
    };
    answered.unwrap_or_else(Answer::from)
}

pub(super) type Answered = Result<Answer, Text>;

/// The configuration's text. Paths of keys and the like are in it, and a file that not everybody may read stays so.
fn config(view: &View, caller: Caller) -> Answered {
    if !caller.trusted {
        let why = "only root and the relay's own user may read what is in force\n";
        return Err(Text(StatusCode::FORBIDDEN, why.to_owned()));
    }
    let in_force = view.in_force();
    let Some(path) = &in_force.path else {
        let why = "this relay was started from the command line and has no configuration file\n";
        return Err(Text(StatusCode::CONFLICT, why.to_owned()));
    };
    let text = json!({
        "path": path,
        "digest": &*in_force.digest,
        "restart": in_force.restart,
        "text": &*in_force.text,
    });
    Ok(Json(text).into())
}

/// Who is busy now.
async fn top(view: &Arc<View>, looks: Arc<Looks>, query: Option<&str>) -> Answered {
    let mut asked = Asked::default();
    for (key, value) in pairs(query)? {
        match &*key {
            "filter" => asked.filter = value,
            "rows" => {
                let rows = value.parse();
                asked.rows = rows.map_err(|_| nonsense("rows is a number"))?;
            }
            "sort" => {
                let sort = Sort::from_str(&value, false);
                asked.sort = sort.map_err(|_| {
                    let known = Sort::value_variants().iter();
                    let known = known.filter_map(ValueEnum::to_possible_value);
                    let known: Vec<_> = known.map(|value| value.get_name().to_owned()).collect();
                    nonsense(&format!("known as sort: {}", known.join(", ")))
                })?;
            }
            _ => return Err(nonsense("known here: sort, filter and rows")),
        }
    }
    looks.keep();
    Ok(super::beside(view, move |view| listed(&live::live(&looks, view, &asked))).await)
}

/// What was used, up to this moment.
async fn usage(view: &Arc<View>, query: Option<&str>) -> Answered {
    let (query, ledger) = (asked(query)?, ledger(view)?);
    let booked = ledger.book_now().await;
    let rows = ledger.report(query).await.map_err(refused)?;
    let answer = super::beside(view, move |_| listed(&rows)).await;
    let Err(error) = booked else {
        return Ok(answer);
    };
    // What is booked already is answered for; the rest is in memory.
    warn!(%error, "usage is told as of the last booking");
    let as_of = ledger.status().booked;
    let as_of = as_of.map_or("not booked yet".to_owned(), |at| format!("as of {at:.0}"));
    Ok(answer.but(&format!(
        "{as_of}, because nothing can be booked now: {error}"
    )))
}

/// A list, of perhaps a hundred thousand lines.
fn listed(list: &impl Serialize) -> Answer {
    match serde_json::to_string(list) {
        Ok(text) => Answer::json(text),
        Err(error) => Text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into(),
    }
}

fn anchor(view: &View) -> Answered {
    match ledger(view)?.last_anchor() {
        Some(anchor) => Ok(Json(json!(anchor)).into()),
        None => Err(Text(
            StatusCode::NOT_FOUND,
            "no head of the audit trail was booked yet\n".to_owned(),
        )),
    }
}

async fn export(view: &View, query: Option<&str>) -> Answered {
    let ledger = ledger(view)?;
    let (mut to, mut all) = (None, false);
    for (key, value) in pairs(query)? {
        match &*key {
            "to" if value.starts_with('/') => to = Some(PathBuf::from(value)),
            "all" => all = !matches!(&*value, "0" | "false"),
            _ => {
                return Err(nonsense(
                    "write ?to=DIR with the whole path of a directory, and all=1",
                ));
            }
        }
    }
    // The hour that was over a moment ago is to be whole.
    ledger.book_now().await.map_err(refused)?;
    let exported = ledger.export(to, all).await.map_err(refused)?;
    Ok(Json(json!(exported)).into())
}

fn ledger(view: &View) -> Result<&Ledger, Text> {
    let none = || {
        let why = "this relay keeps its books in memory: it has no ledger. Write state_dir in its configuration\n";
        Text(StatusCode::NOT_FOUND, why.to_owned())
    };
    view.readiness.booking.ledger.as_deref().ok_or_else(none)
}

fn refused(error: AskError) -> Text {
    let status = match &error {
        AskError::Trouble(trouble) if trouble.kind == Kind::TooMuch => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Text(status, format!("{error}\n"))
}

pub(super) fn pairs(query: Option<&str>) -> Result<Vec<(String, String)>, Text> {
    let malformed = || nonsense("what is behind the question mark is malformed");
    query::decode(query.unwrap_or_default()).ok_or_else(malformed)
}

pub(super) fn nonsense(what: &str) -> Text {
    Text(StatusCode::BAD_REQUEST, format!("{what}\n"))
}

fn asked(query: Option<&str>) -> Result<Query, Text> {
    let mut asked = Query::default();
    for (key, value) in pairs(query)? {
        let time = || {
            let moment = value.parse::<Timestamp>();
            moment.map_err(|_| {
                nonsense(&format!(
                    "{key}={value}: write a time as in 2026-11-21T17:00:00Z"
                ))
            })
        };
        match &*key {
            "since" => asked.since = Some(time()?),
            "until" => asked.until = Some(time()?),
            "by" => asked
                .by
                .push(value.parse().map_err(|error: String| nonsense(&error))?),
            _ => return Err(nonsense("known here: since, until and by")),
        }
    }
    Ok(asked)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as Blocking;

    use super::*;
    use crate::account::ledger::By;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o7777
    }

    #[test]
    fn what_is_asked_is_understood_or_refused_with_what_would_be() {
        let query = asked(Some("since=2026-11-21T17:00:00%2B00:00&by=endpoint&by=day"))
            .expect("understood");
        assert_eq!(query.since, "2026-11-21T17:00:00Z".parse().ok());
        assert_eq!((query.until, query.by), (None, vec![By::Endpoint, By::Day]));
        assert_eq!(asked(None).expect("everything").by, []);
        for (query, said) in [
            ("since=yesterday", "2026-11-21T17:00:00Z"),
            ("by=week", "endpoint, consumer"),
            ("form=csv", "since, until and by"),
            ("by=%zz", "malformed"),
        ] {
            let Text(status, text) = asked(Some(query)).expect_err(query);
            assert_eq!(status, StatusCode::BAD_REQUEST);
            assert!(text.contains(said), "{text}");
        }
    }

    #[tokio::test]
    async fn anybody_may_connect_and_the_name_goes_with_the_relay() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("run/admin.sock");
        let socket = Socket::bind(&path).expect("its directory is made");
        assert_eq!(mode(&path), 0o666);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_a_killed_relay_left_is_replaced_and_what_lives_is_not() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("s");
        drop(Blocking::bind(&path).expect("a socket"));
        let socket = Socket::bind(&path).expect("nobody listens");
        let error = Socket::bind(&path).expect_err("somebody listens");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("run_dir of its own"), "{error}");
        assert!(path.exists(), "it was left alone");
        drop(socket);
    }

    #[tokio::test]
    async fn what_is_no_socket_stays() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("s");
        fs::write(&path, "precious").expect("a file");
        let error = Socket::bind(&path).expect_err("it is in the way");
        assert!(error.to_string().contains("remove it"), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }

    #[tokio::test]
    async fn who_took_the_name_keeps_it() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("s");
        let first = Socket::bind(&path).expect("bound");
        fs::remove_file(&path).expect("it is there");
        let _second = Socket::bind(&path).expect("bound");
        drop(first);
        assert!(path.exists());
    }
}
