//! The part in front: it has the user's terminal, network and process ids. It starts the other one in namespaces, passes Ctrl-C on as a
//! request to end in order, and is the door through which the user's own programs reach the relay.
//!
//! The two speak over a socket pair that is the inner one's standard input. When this process goes, so does the other: it asked the kernel
//! for that, and unshare(1) passes it on.

use std::{
    env, fs,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{ExitCode, Stdio},
    sync::mpsc,
    thread,
};

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    process::{Signal, geteuid, set_parent_process_death_signal},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::Command,
    signal::unix::{SignalKind, signal},
};

use crate::{Options, harness::BOUND};

/// Set for the inner part, to who the user is.
const PART: &str = "TOLLGATE_DEMO_USER";
const ROOT: &str = "root";
/// Where the relay's own admin port would be; another is taken if it is not free.
const PORT: u16 = 9900;

/// Whether this process is the inner part.
pub(crate) fn is_inside() -> bool {
    env::var_os(PART).is_some()
}

/// Whether the user is root; inside a user namespace everybody seems to be.
pub(crate) fn is_root() -> bool {
    env::var_os(PART).is_some_and(|user| user == ROOT)
}

/// Starts the inner part and waits for its end.
pub(crate) fn run(options: Options) -> Result<ExitCode, String> {
    // make, or whoever started us, may be killed without a chance to tell.
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(failed("watch our parent"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start"))?;
    runtime
        .block_on(accompany(options))
        .map_err(failed("run the demo's inner part"))
}

fn failed<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> String {
    move |error| format!("cannot {what}: {error}")
}

async fn accompany(options: Options) -> io::Result<ExitCode> {
    let mut signals = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .map(signal);
    let [interrupt, terminate, hangup] = &mut signals;
    let (Ok(interrupt), Ok(terminate), Ok(hangup)) = (interrupt, terminate, hangup) else {
        return Err(io::Error::other("no signal handlers"));
    };
    let (ours, theirs) = UnixStream::pair()?;
    let user = if geteuid().is_root() { ROOT } else { "other" };
    let mut child = Command::new(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(PART, user)
        // Out of the terminal's reach: Ctrl-C would also hit the relay.
        .process_group(0)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .kill_on_drop(true)
        .spawn()?;
    let unshare = child.id().unwrap_or(0);
    let door = if options.keep { Some(door()?) } else { None };
    hand_over(&ours, door.as_ref())?;
    ours.set_nonblocking(true)?;
    let (read, write) = tokio::net::UnixStream::from_std(ours)?.into_split();
    let mut questions = BufReader::new(read).lines();
    let mut write = Some(write);
    let mut asks = true;
    loop {
        tokio::select! {
            status = child.wait() => {
                let code = status?.code().unwrap_or(1);
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            _ = async { tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            } } => match write.take() {
                // The end of this stream is the request to end.
                Some(write) => drop(write),
                // Asked a second time.
                None => child.start_kill()?,
            },
            question = questions.next_line(), if asks => match (question, &mut write) {
                (Ok(Some(inner)), Some(write)) => {
                    let outer = outer_id(unshare, inner.trim()).unwrap_or(0);
                    write.write_all(format!("{outer}\n").as_bytes()).await?;
                }
                (Ok(Some(_)), None) => {}
                (Ok(None) | Err(_), _) => asks = false,
            },
        }
    }
}

/// A port of the user's own loopback interface.
fn door() -> io::Result<TcpListener> {
    let listen = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    listen(PORT).or_else(|_| listen(0))
}

fn hand_over(to: &UnixStream, door: Option<&TcpListener>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let descriptors = door.map(|door| [door.as_fd()]);
    if let Some(descriptors) = &descriptors {
        message.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(to, &[IoSlice::new(b"\n")], &mut message, SendFlags::empty())?;
    Ok(())
}

/// The id under which this process's namespace knows a process of the inner one's.
fn outer_id(unshare: u32, inner: &str) -> Option<u32> {
    let space = |path: String| fs::read_link(path).ok();
    let wanted = space(format!("/proc/{unshare}/ns/pid_for_children"))?;
    let processes = fs::read_dir("/proc").ok()?;
    let mut ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.find(|id: &u32| {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        ids.and_then(|ids| ids.split_whitespace().last()) == Some(inner)
            && space(format!("/proc/{id}/ns/pid")).as_ref() == Some(&wanted)
    })
}

/// The inner part's end.
pub(crate) struct Outside {
    socket: UnixStream,
    /// The user's door, if there is to be one.
    pub(crate) door: Option<TcpListener>,
}

/// To be called before anything else in the inner part, also before it starts itself again.
pub(crate) fn die_together() -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed("watch our parent"))
}

impl Outside {
    /// Takes what the outer part has put into our standard input.
    pub(crate) fn connect() -> Result<Self, String> {
        let receive = || -> io::Result<Self> {
            let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
            socket.set_read_timeout(Some(BOUND))?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut messages = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let mut into = [IoSliceMut::new(&mut byte)];
            recvmsg(&socket, &mut into, &mut messages, RecvFlags::CMSG_CLOEXEC)?;
            let descriptors = messages.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            let door = descriptors.flatten().next().map(TcpListener::from);
            Ok(Self { socket, door })
        };
        receive().map_err(failed("speak with the outer part"))
    }

    /// How a process of ours is called outside.
    pub(crate) fn id_of(&mut self, inner: u32) -> io::Result<u32> {
        writeln!(self.socket, "{inner}")?;
        let mut answer = String::new();
        let mut byte = [0];
        while self.socket.read(&mut byte)? == 1 && byte[0] != b'\n' {
            answer.push(char::from(byte[0]));
        }
        if answer.is_empty() {
            return Err(io::Error::other("it was told to end"));
        }
        answer.parse().map_err(io::Error::other)
    }

    /// From now on only the request to end is waited for; it comes out of the receiver.
    pub(crate) fn listen_for_the_end(mut self) -> Result<mpsc::Receiver<()>, String> {
        let (sender, receiver) = mpsc::channel();
        self.socket
            .set_read_timeout(None)
            .map_err(failed("wait for the end"))?;
        thread::Builder::new()
            .name("end".to_owned())
            .spawn(move || {
                while matches!(self.socket.read(&mut [0]), Ok(1..)) {}
                let _ = sender.send(());
            })
            .map_err(failed("start a thread"))?;
        Ok(receiver)
    }
}
