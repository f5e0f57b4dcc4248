//! `BENCH_PERF=1`: perf(1) watches each relay while it is measured. See benches/PROFILE.md.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{peers::Running, processor, workload::Workload};

/// Lines of a report that are worth a look.
const LINES: usize = 40;

/// perf(1) at work, and where it writes.
#[derive(Debug)]
pub(crate) struct Profile {
    perf: Child,
    data: PathBuf,
}

/// Where all that a run leaves goes.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/out")
}

/// Begins to watch, if that is asked for and there is a process.
pub(crate) fn begin(
    relay: &Running,
    workload: &Workload,
    length: Duration,
) -> io::Result<Option<Profile>> {
    let asked = env::var_os("BENCH_PERF").is_some_and(|value| value != "0" && !value.is_empty());
    let (true, Some(process)) = (asked, relay.process_id()) else {
        return Ok(None);
    };
    fs::create_dir_all(folder())?;
    let name = format!("{} {}", workload.name, relay.number());
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let data = folder().join(format!("{name}.perf.data"));
    let processes: Vec<String> = processor::family(process)?
        .iter()
        .map(u32::to_string)
        .collect();
    let mut command = Command::new("perf");
    command.args([
        "record",
        "--quiet",
        "--call-graph",
        "fp",
        "--freq",
        "2000",
        "--output",
    ]);
    command.arg(&data).args(["--pid", &processes.join(",")]);
    command.args(["--", "sleep", &length.as_secs_f64().to_string()]);
    let perf = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let perf =
        perf.map_err(|error| io::Error::other(format!("perf: {error}: install linux-perf")))?;
    Ok(Some(Profile { perf, data }))
}

/// Waits for its end and writes what it saw beside the data: symbols by their own time, first without and then with who called them.
pub(crate) fn end(profile: Option<Profile>) -> io::Result<()> {
    let Some(Profile { mut perf, data }) = profile else {
        return Ok(());
    };
    perf.wait()?;
    let report = |more: &[&str]| {
        let mut command = Command::new("perf");
        command
            .args(["report", "--stdio", "--no-children", "--input"])
            .arg(&data);
        command.args(more).stderr(Stdio::null()).output()
    };
    let flat = report(&["--call-graph", "none", "--fields", "overhead,symbol"])?.stdout;
    let calls = report(&["--sort", "symbol"])?.stdout;
    let flat = String::from_utf8_lossy(&flat).into_owned();
    let lines = flat
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    let top: Vec<&str> = lines.take(LINES).collect();
    crate::say(&format!("{}\n{}\n", data.display(), top.join("\n")));
    fs::write(
        data.with_extension("txt"),
        [flat.as_bytes(), &calls].concat(),
    )
}
