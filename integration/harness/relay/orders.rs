//! What a relay is told through its admin socket, by whom, and what it answers.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::Duration,
};

use rustix::{process::Uid, thread::set_thread_res_uid};
use serde_json::Value;

use super::Relay;

/// Longest wait for the relay to say anything: longer than the relay itself waits for what it was told.
const PATIENCE: Duration = Duration::from_secs(90);

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// HTTP's status.
    pub status: u16,
    /// What stood behind its head.
    pub body: String,
}

impl Answered {
    /// What was done, if it was.
    ///
    /// # Panics
    /// When it was not, with what was said.
    #[track_caller]
    pub fn done(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Checks that it was declined with this status, for a reason in which all of `parts` stand.
    ///
    /// # Panics
    /// When it was not.
    #[track_caller]
    pub fn assert_declined(&self, status: u16, parts: &[&str]) {
        assert_eq!(self.status, status, "{}", self.body);
        for part in parts {
            assert!(self.body.contains(part), "{part:?} in {:?}", self.body);
        }
    }
}

impl Relay {
    /// Its admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.home().run().join("admin.sock")
    }

    /// Has it read its configuration anew.
    #[track_caller]
    pub fn reload(&self) -> Answered {
        self.order("/reload")
    }

    /// Writes its configuration anew (`@DIR@` is filled in) and has it read that.
    #[track_caller]
    pub fn reload_with(&self, config: &str) -> Answered {
        self.rewrite_config(config);
        self.reload()
    }

    /// Gives it an order (`/reload`, `/drain?now=1`, `/undrain`), as root.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn order(&self, order: &str) -> Answered {
        self.order_as(0, order)
    }

    /// As [`order`](Self::order), as another user.
    #[track_caller]
    pub fn order_as(&self, user: u32, order: &str) -> Answered {
        self.ask_socket(user, "POST", order)
    }

    /// Asks at its admin socket, as this user.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn ask_socket(&self, user: u32, method: &str, path: &str) -> Answered {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: tollgate\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let answer = self.say_to_socket(user, request.as_bytes());
        let answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        answered(&answer).unwrap_or_else(|| panic!("{method} {path}: no HTTP: {answer:?}"))
    }

    /// Writes `bytes` to its admin socket, as this user, and reads to the end what it says to that.
    ///
    /// # Errors
    /// Those of the socket; what was not taken because the relay had ended the connection before is none.
    pub fn say_to_socket(&self, user: u32, bytes: &[u8]) -> io::Result<String> {
        let path = self.admin_socket();
        thread::scope(|scope| {
            // A user is a thread's own in Linux, and so is who connects.
            let asked = scope.spawn(|| {
                if user != 0 {
                    let user = Uid::from_raw(user);
                    set_thread_res_uid(user, user, user)?;
                }
                let mut stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                match stream.write_all(bytes) {
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                    _ => {}
                }
                let mut answer = Vec::new();
                match stream.read_to_end(&mut answer) {
                    // Whoever closes with unread bytes resets, behind the answer.
                    Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
                    _ => Ok(String::from_utf8_lossy(&answer).into_owned()),
                }
            });
            asked.join().expect("it does not panic")
        })
    }
}

fn answered(answer: &str) -> Option<Answered> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some(Answered {
        status: head.split(' ').nth(1)?.parse().ok()?,
        body: body.to_owned(),
    })
}
