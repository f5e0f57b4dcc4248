//! systemd's end of sd_notify(3): the socket that a service tells how it is, and everything that it told.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{BOUND, watched::Watched};

/// How soon the reader sees that nobody is interested any more.
const LOOK: Duration = Duration::from_millis(100);

/// One datagram.
#[derive(Clone, Debug)]
pub struct Message {
    /// When it came.
    pub at: Instant,
    /// Its lines.
    pub text: String,
}

impl Message {
    /// The value of a variable in it.
    pub fn value(&self, key: &str) -> Option<&str> {
        let mut lines = self.text.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
    }
}

/// A stand-in for systemd that runs until it is dropped.
#[derive(Debug)]
pub struct Notify {
    folder: TempDir,
    messages: Arc<Watched<Vec<Message>>>,
    stop: Arc<AtomicBool>,
}

impl Notify {
    /// Listens at a path of its own.
    #[track_caller]
    pub fn new() -> Self {
        let folder = TempDir::new_in("/run").expect("/run is ours");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("it is empty");
        Self::with(folder, socket)
    }

    /// Listens on this socket.
    #[track_caller]
    pub fn on(socket: UnixDatagram) -> Self {
        Self::with(TempDir::new_in("/run").expect("/run is ours"), socket)
    }

    fn with(folder: TempDir, socket: UnixDatagram) -> Self {
        let messages = Arc::new(Watched::<Vec<Message>>::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (heard, stopped) = (Arc::clone(&messages), Arc::clone(&stop));
        socket
            .set_read_timeout(Some(LOOK))
            .expect("any time but zero");
        thread::spawn(move || {
            let mut bytes = vec![0; 64 * 1024];
            while !stopped.load(Ordering::Relaxed) {
                match socket.recv(&mut bytes) {
                    Ok(n) => {
                        let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
                        let at = Instant::now();
                        heard.update(|messages| messages.push(Message { at, text }));
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
        Self {
            folder,
            messages,
            stop,
        }
    }

    /// What a service is told in `NOTIFY_SOCKET`, of one made with [`new`](Self::new).
    pub fn path(&self) -> PathBuf {
        Path::new(self.folder.path()).join("notify")
    }

    /// Everything that was told so far.
    pub fn messages(&self) -> Vec<Message> {
        self.messages.look(Vec::clone)
    }

    /// Waits until a message that came after the first `skip` is as `wanted`.
    #[track_caller]
    pub fn wait(&self, what: &str, skip: usize, wanted: impl Fn(&Message) -> bool) -> Message {
        self.messages.wait(what, BOUND, |messages| {
            let mut later = messages.iter().skip(skip);
            later.find(|message| wanted(message)).cloned()
        })
    }
}

impl Default for Notify {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
