//! The user's door into the demo while it is kept: what the relay's admin port says, and commands that kill parts and start them again.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use crate::world::{Part, World};

/// How long a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request.
const LONGEST: u64 = 16 * 1024;

/// Serves one request after the other, until the process ends.
pub(crate) fn serve(door: TcpListener, world: Arc<World>) -> io::Result<()> {
    thread::Builder::new()
        .name("door".to_owned())
        .spawn(move || {
            for stream in door.incoming().flatten() {
                // Whoever hangs up in the middle does without the answer.
                let _ = answer(&stream, &world);
            }
        })
        .map(drop)
}

fn answer(mut stream: &TcpStream, world: &World) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.take(LONGEST)).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (status, body) = respond(method, path, world);
    write!(
        stream,
        "HTTP/1.1 {status} -\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn respond(method: &str, path: &str, world: &World) -> (u16, String) {
    match (method, path) {
        ("GET", "/metrics" | "/status" | "/healthz" | "/readyz") => match world.relay.try_get(path)
        {
            Ok(answer) => answer,
            Err(error) => (502, format!("the relay does not answer: {error}\n")),
        },
        ("POST", _) => match command(path, world) {
            Some(Ok(done)) => (200, done),
            Some(Err(error)) => (500, format!("{error}\n")),
            None => (404, help()),
        },
        ("GET", "/") => (200, help()),
        _ => (404, help()),
    }
}

fn command(path: &str, world: &World) -> Option<Result<String, String>> {
    let (verb, name) = path.strip_prefix('/')?.split_once('/')?;
    let part = Part::ALL.into_iter().find(|part| part.name() == name)?;
    let said = match verb {
        "kill" => {
            world.kill(part);
            Ok("killed")
        }
        "start" => world.start(part).map(|()| "runs"),
        _ => return None,
    };
    Some(said.map(|said| format!("{}: {said}\n", part.described())))
}

fn help() -> String {
    let parts = Part::ALL.map(Part::name).join(", ");
    format!(
        "GET /metrics, /status, /healthz, /readyz: the relay's own\n\
         POST /kill/PART, /start/PART: {parts}\n"
    )
}
