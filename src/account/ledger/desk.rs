//! The thread that answers questions. It reads beside the booking, by connections of its own, and a question that takes long delays only questions.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::clerk::Command;
use super::export::{Exported, is_ahead, make_dir, write_hour};
use super::read::Reading;
use super::report::{Query, Row};
use super::trouble::{Kind, Trouble};
use super::{FILE, Settings};

/// How long one report may take, and with it keep the log of changes from being taken up.
const REPORT: Duration = Duration::from_secs(30);

/// After so long an export answers, and says that there is more.
const EXPORT: Duration = Duration::from_secs(20);

/// How long the clerk may take to seal hours.
const SEAL: Duration = Duration::from_secs(10);

const NICE: i32 = 15;

/// What the thread is asked.
#[derive(Debug)]
pub(super) enum Question {
    Report(Query, oneshot::Sender<Result<Vec<Row>, Trouble>>),
    Export {
        to: Option<PathBuf>,
        all: bool,
        reply: oneshot::Sender<Result<Exported, Trouble>>,
    },
}

/// See the module.
pub(super) struct Desk {
    pub(super) settings: Settings,
    pub(super) clerk: SyncSender<Command>,
}

impl Desk {
    /// Answers until nobody is left to ask.
    pub(super) fn work(self, questions: &Receiver<Question>) {
        let _ = rustix::process::setpriority_process(None, NICE);
        while let Ok(question) = questions.recv() {
            match question {
                // Who asked has gone home.
                Question::Report(_, reply) if reply.is_closed() => {}
                Question::Export { reply, .. } if reply.is_closed() => {}
                Question::Report(query, reply) => {
                    let _ = reply.send(self.report(&query));
                }
                Question::Export { to, all, reply } => {
                    let _ = reply.send(self.export(to, all));
                }
            }
        }
    }

    fn report(&self, query: &Query) -> Result<Vec<Row>, Trouble> {
        let path = self.settings.state_dir.join(FILE);
        Reading::open_in_place(path)?.report(query, Instant::now() + REPORT)
    }

    fn export(&self, to: Option<PathBuf>, all: bool) -> Result<Exported, Trouble> {
        let state_dir = &self.settings.state_dir;
        let path = state_dir.join(FILE);
        let dir = to.unwrap_or_else(|| state_dir.join("export"));
        make_dir(&dir)?;
        let deadline = Instant::now() + EXPORT;
        let mut exported = Exported::default();
        loop {
            let hours = self.ask(|reply| Command::Seal { all, reply })?;
            let reading = Reading::open_in_place(path.clone())?;
            if hours.is_empty() {
                let now = jiff::Timestamp::now();
                exported.ahead = all && is_ahead(reading.connection(), &path, now)?;
                return Ok(exported);
            }
            for hour in hours {
                if Instant::now() > deadline {
                    exported.more = true;
                    return Ok(exported);
                }
                let until = Instant::now() + REPORT;
                let (files, rows) = write_hour(reading.connection(), &path, hour, &dir, until)?;
                let written = files.clone();
                self.ask(|reply| Command::Exported { hour, files, reply })?;
                exported.files.extend(written);
                exported.rows += rows;
            }
        }
    }

    fn ask<T>(
        &self,
        command: impl FnOnce(SyncSender<Result<T, Trouble>>) -> Command,
    ) -> Result<T, Trouble> {
        let (reply, answer) = sync_channel(1);
        let gone = || {
            let path = self.settings.state_dir.join(FILE);
            Trouble::new(Kind::Busy, &path, "the thread that books does not answer")
        };
        self.clerk.try_send(command(reply)).map_err(|_| gone())?;
        answer.recv_timeout(SEAL).map_err(|_| gone())?
    }
}
