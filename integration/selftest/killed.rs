//! A run that is killed leaves nothing behind.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Write},
    process::{Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;

use crate::{
    claim,
    harness::{BOUND, enter, netns::Lab},
};

/// Set in the process that is to be killed, and through it in all that it starts; its value tells runs apart.
pub(crate) const VICTIM: &str = "TOLLGATE_LAB_VICTIM";
/// How long a victim waits for its end before it goes by itself.
const PATIENCE_SECONDS: &str = "60";

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim("killed_run_leaves_no_process", killed_run_leaves_no_process),
        claim(
            "killed_unshare_leaves_no_process",
            killed_unshare_leaves_no_process,
        ),
    ]
}

fn killed_run_leaves_no_process() {
    kill_one_of("run", |processes, unshare| {
        // The run itself is unshare's only child.
        *processes
            .iter()
            .find(|process| parent_of(**process) == Some(unshare))
            .expect("unshare has a child")
    });
}

fn killed_unshare_leaves_no_process() {
    kill_one_of("unshare", |_, unshare| unshare);
}

fn kill_one_of(name: &str, choose: impl FnOnce(&[u32], u32) -> u32) {
    let mark = format!("{}-{name}", std::process::id());
    let mut unshare = Command::new(env::current_exe().expect("we run from a file"))
        .env_remove(enter::INSIDE)
        .env(VICTIM, &mark)
        .stdout(Stdio::piped())
        // unshare has something to say about a child that was killed.
        .stderr(Stdio::null())
        .spawn()
        .expect("this program can be started");
    let stdout = unshare.stdout.take().expect("it is piped");
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("a victim speaks or ends");
    assert_eq!(line, "ready\n");
    // The child's environment cannot be read while nsenter becomes sleep.
    let deadline = Instant::now() + BOUND;
    let processes = loop {
        let processes = marked(&mark);
        if processes.len() >= 3 {
            break processes;
        }
        assert!(
            Instant::now() < deadline,
            "unshare, the run and its child: {processes:?}"
        );
        thread::sleep(Duration::from_millis(2));
    };
    let chosen = choose(&processes, unshare.id());
    let status = Command::new("kill")
        .args(["-KILL", &chosen.to_string()])
        .status()
        .expect("kill(1) is there");
    assert!(status.success());
    unshare.wait().expect("it is our child");
    let deadline = Instant::now() + BOUND;
    loop {
        let left = marked(&mark);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "still there: {left:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn be_killed() -> ExitCode {
    if let Err(reason) = enter::enter() {
        let _ = writeln!(io::stderr(), "{reason}");
        return ExitCode::FAILURE;
    }
    let lab = Lab::new("victim");
    let host = lab.host("host");
    let child = host.command("sleep").arg(PATIENCE_SECONDS).spawn();
    let mut child = child.expect("sleep(1) is there");
    let _ = writeln!(io::stdout(), "ready");
    let _ = child.wait();
    ExitCode::FAILURE
}

/// The processes whose environment has the mark. A zombie has none.
fn marked(mark: &str) -> Vec<u32> {
    let wanted = format!("{VICTIM}={mark}");
    let processes = fs::read_dir("/proc").expect("/proc is mounted");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|process: &u32| {
            let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            let mut variables = environment.split(|byte| *byte == 0);
            variables.any(|variable| variable == wanted.as_bytes())
        })
        .collect()
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // "pid (name) state ppid …", and a name may hold anything.
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}
