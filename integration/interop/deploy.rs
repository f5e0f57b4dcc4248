//! What is shipped in `deploy/`: promtool and Prometheus itself judge the rules and the dashboard's questions, and a relay has every metric that they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Trial;
use serde_json::Value;

use crate::{
    claim,
    harness::{BOUND, netns::output_of, relay::Start},
    programs::{Server, command, local, until},
    world::{FRONT, FRONT_V6, WITH_CHECKSUM, World},
};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        claim(
            "promtool_finds_the_rules_right_and_each_alert_fires_when_it_should",
            rules_are_right,
        ),
        claim(
            "each_alert_says_what_to_do_and_is_tested_both_ways",
            alerts_are_whole,
        ),
        claim("the_dashboard_is_whole", dashboard_is_whole),
        claim(
            "each_metric_of_rules_and_dashboard_is_one_that_a_relay_has",
            metrics_exist,
        ),
        claim(
            "prometheus_evaluates_each_rule_and_has_an_answer_for_each_panel",
            prometheus_answers,
        ),
    ]
}

/// Between two rounds of traffic, scrapes and questions.
const ROUND: Duration = Duration::from_millis(500);

/// Who asks without a panel.
const ANNOTATION: &str = "annotation";

/// More for the shipped configuration, so that it has everything that there are metrics of: connections dialled ahead, endpoints with names, and clients
/// that no route takes.
fn with_everything(start: Start) -> Start {
    let listener = "trusted_peers = [\"10.20.0.0/16\"]\nupstream = \"control-plane\"\n";
    let routes = "trusted_peers = [\"10.20.0.0/16\"]\nroutes = [{ network = \"172.31.0.0/16\", upstream = \"control-plane\" }]\n";
    let upstream = "name = \"control-plane\"\n";
    // Booked soon, because there are metrics of that, too.
    let names = "[ledger]\ninterval = \"200ms\"\n[endpoint.\"*\"]\nname = \"whoever\"\naccount = \"210987654321\"\nmax_sessions = 100000\n";
    start
        .replace(listener, routes)
        .replace(
            upstream,
            &format!("{upstream}ahead = {{ min = 1, max = 4 }}\n"),
        )
        .replace("[health]\n", &format!("{names}[health]\n"))
}

/// A session of each kind: one that is taken, and one that is not because it comes by IPv6.
fn traffic(world: &World) {
    world.curl(&[&format!("http://{FRONT}:443/")]);
    let mut refused = command(&world.client, "curl");
    refused.args(["--silent", "--max-time", "30"]);
    refused.arg(format!("http://[{FRONT_V6}]:443/"));
    let output = refused.output().expect("curl is there");
    assert!(!output.status.success(), "no route takes it");
}

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(path)
}

fn text(path: &str) -> String {
    let path = shipped(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn dashboard() -> Value {
    serde_json::from_str(&text("grafana/tollgate.json")).expect("the dashboard is JSON")
}

/// What promtool says about files beside the rules.
#[track_caller]
fn promtool(folder: &Path, arguments: &[&str]) -> String {
    let mut promtool = local("promtool");
    promtool.current_dir(folder).args(arguments);
    output_of(promtool, b"")
}

fn rules_are_right() {
    let folder = shipped("prometheus");
    promtool(&folder, &["check", "rules", "rules.yml"]);
    promtool(&folder, &["test", "rules", "rules_test.yml"]);
}

fn alerts_are_whole() {
    let (rules, tests) = (
        text("prometheus/rules.yml"),
        text("prometheus/rules_test.yml"),
    );
    let alerts: Vec<&str> = rules.split("\n      - alert: ").skip(1).collect();
    assert!(
        alerts.len() > 10,
        "the file is laid out as this test reads it"
    );
    for alert in alerts {
        let alert = alert.split("\n      - record: ").next().unwrap_or_default();
        let (name, _) = alert
            .split_once('\n')
            .expect("an alert has more than a name");
        for key in ["severity: ", "summary: ", "description: ", "runbook: "] {
            let lines = alert
                .lines()
                .filter(|line| line.trim_start().starts_with(key));
            assert_eq!(lines.count(), 1, "{name} has no {key}");
        }
        // Each question about it, up to the next one.
        let asked = |silent: bool| {
            let questions = tests.split("- expr: ").skip(1).filter(|question| {
                let about = question.lines().next().unwrap_or_default();
                let answer = question.contains("exp_samples: []");
                answer == silent && is_about(about, name)
            });
            questions.count()
        };
        assert!(asked(false) > 0, "no test has {name} fire");
        assert!(asked(true) > 0, "no test has {name} silent");
    }
}

/// Whether a question's selector takes this alert: by its whole name, or by a pattern with alternatives and `.*` at their ends.
fn is_about(question: &str, name: &str) -> bool {
    let quoted = |from: &str| {
        let (_, rest) = question.split_once(from)?;
        rest.split_once('"').map(|(value, _)| value.to_owned())
    };
    if quoted("alertname=\"").is_some_and(|value| value == name) {
        return true;
    }
    let pattern = quoted("alertname=~\"").unwrap_or_default();
    pattern.split('|').any(|one| match one.strip_suffix(".*") {
        Some(start) => name.starts_with(start),
        None => one == name,
    })
}

/// A panel, or a row without those that are folded into it.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().expect("it has panels");
    let folded = |panel: &'_ Value| {
        panel["panels"]
            .as_array()
            .is_some_and(|folded| !folded.is_empty())
    };
    assert!(
        !all.iter().any(folded),
        "rows are open, so that each panel is seen here"
    );
    all.iter().collect()
}

/// Every question that the dashboard asks, and who asks it. Variables and annotations ask, too.
fn questions(dashboard: &Value) -> Vec<(String, String)> {
    let mut questions = Vec::new();
    for panel in panels(dashboard) {
        let title = panel["title"].as_str().unwrap_or_default();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let question = target["expr"].as_str().expect("a target asks something");
            questions.push((format!("panel {title:?}"), question.to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let question = annotation["expr"]
            .as_str()
            .expect("an annotation asks something");
        questions.push((ANNOTATION.to_owned(), question.to_owned()));
    }
    for variable in variables(dashboard) {
        // label_values(SELECTOR, LABEL)
        let query = variable["query"]["query"].as_str().unwrap_or_default();
        let inside = query
            .strip_prefix("label_values(")
            .and_then(|rest| rest.rsplit_once(','));
        if let Some((selector, _)) = inside {
            questions.push((
                format!("variable {}", variable["name"]),
                selector.to_owned(),
            ));
        }
    }
    questions
}

fn variables(dashboard: &Value) -> &[Value] {
    dashboard["templating"]["list"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

/// A question with Grafana's variables filled in, as for "All".
fn filled(question: &str) -> String {
    let mut filled = question
        .replace("$__rate_interval", "1m")
        .replace("$__range", "1h");
    while let Some(at) = filled.find('$') {
        let name = filled[at + 1..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let end = name.map_or(filled.len(), |length| at + 1 + length);
        filled.replace_range(at..end, ".*");
    }
    filled
}

fn dashboard_is_whole() {
    let dashboard = dashboard();
    let names: BTreeSet<&str> = variables(&dashboard)
        .iter()
        .filter_map(|variable| variable["name"].as_str())
        .collect();
    let source = variables(&dashboard)
        .iter()
        .find(|variable| variable["type"] == "datasource")
        .expect("the data source is a variable");
    assert_eq!(
        (&source["name"], &source["query"]),
        (&"datasource".into(), &"prometheus".into())
    );
    let (mut ids, mut places) = (BTreeSet::new(), BTreeMap::new());
    for panel in panels(&dashboard) {
        let title = &panel["title"];
        assert!(
            ids.insert(panel["id"].as_u64().expect("a panel has a number")),
            "{title}: its number is another one's"
        );
        let side = |name: &str| {
            panel["gridPos"][name]
                .as_u64()
                .expect("a panel has a place")
        };
        let (left, top) = (side("x"), side("y"));
        assert!(left + side("w") <= 24, "{title} is wider than the page");
        for x in left..left + side("w") {
            for y in top..top + side("h") {
                let other = places.insert((x, y), title);
                assert!(other.is_none(), "{title} lies on {other:?}");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().expect("a panel asks something");
        assert!(!targets.is_empty(), "{title}");
        for owner in targets.iter().chain([panel]) {
            assert_eq!(owner["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    // One rule for each question: what promtool cannot parse is no rule.
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, (who, question)) in questions(&dashboard).into_iter().enumerate() {
        for variable in question.split('$').skip(1) {
            let name = variable
                .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .next()
                .unwrap_or_default();
            let own = ["__rate_interval", "__range"].contains(&name);
            assert!(
                own || names.contains(name),
                "{who} asks for ${name}, which is no variable"
            );
        }
        let question = serde_json::to_string(&filled(&question)).expect("a text");
        rules += &format!("  - record: question_{number}\n    expr: {question}\n");
    }
    let folder = tempfile::TempDir::new_in("/run").expect("/run is ours");
    fs::write(folder.path().join("rules.yml"), rules).expect("/run is ours");
    promtool(folder.path(), &["check", "rules", "rules.yml"]);
}

/// The names of series that a text has in it: ours, and what rules record of them.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    let ours = words.filter(|word| word.starts_with("tollgate_") || word.contains(":tollgate_"));
    ours.map(|word| word.trim_end_matches(':').to_owned())
        .collect()
}

fn metrics_exist() {
    let world = World::furnished("families", 80, WITH_CHECKSUM, with_everything);
    traffic(&world);
    let rules = text("prometheus/rules.yml");
    let lines = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let rules = lines.collect::<Vec<_>>().join("\n");
    let recorded: BTreeSet<String> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "))
        .map(str::to_owned)
        .collect();
    let asked: Vec<String> = questions(&dashboard())
        .into_iter()
        .map(|(_, question)| question)
        .collect();
    let all: BTreeSet<String> = named(&(rules + &asked.join(" "))).into_iter().collect();
    assert!(all.len() > 40, "they are found: {all:?}");
    let mut missing = Vec::new();
    let found = until(|| {
        let (_, metrics) = world.relay.get("/metrics");
        missing = missing_of(&all, &recorded, &metrics);
        missing.is_empty().then_some(())
    });
    assert!(
        found.is_some(),
        "{missing:?} are neither recorded nor in\n{}",
        world.relay.get("/metrics").1
    );
}

/// Those that are neither recorded by a rule nor a family of these metrics.
fn missing_of(all: &BTreeSet<String>, recorded: &BTreeSet<String>, metrics: &str) -> Vec<String> {
    let types = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let families: BTreeSet<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    let is_missing = |name: &&String| {
        let ends = ["_bucket", "_sum", "_count"];
        let family = ends.iter().find_map(|end| name.strip_suffix(end));
        let in_families = |name: &str| families.contains(name);
        !recorded.contains(*name) && !in_families(name) && !family.is_some_and(in_families)
    };
    all.iter().filter(is_missing).cloned().collect()
}

/// Prometheus, asked through its own API.
struct Prometheus<'a> {
    world: &'a World,
    _server: Server,
}

impl<'a> Prometheus<'a> {
    /// Beside the relay, with the shipped rules. It scrapes and evaluates each second.
    fn start(world: &'a World) -> Self {
        let host = world.relay.host();
        let rules = text("prometheus/rules.yml").replace("interval: 30s", "interval: 1s");
        let rules_file = world.path("rules.yml");
        fs::write(&rules_file, rules).expect("/run is ours");
        let config = world.path("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{rules_file}]\n\
             scrape_configs:\n- job_name: tollgate\n  static_configs: [{{ targets: [\"127.0.0.1:9900\"] }}]\n"
        );
        fs::write(&config, text).expect("/run is ours");
        let mut prometheus = command(host, "prometheus");
        prometheus
            .arg(format!("--config.file={config}"))
            .arg(format!("--storage.tsdb.path={}", world.path("tsdb")))
            .arg("--web.listen-address=127.0.0.1:9090");
        let output = world.folder.path().join("prometheus.out");
        let server = Server::start(host, prometheus, &output, &["127.0.0.1:9090"]);
        Self {
            world,
            _server: server,
        }
    }

    /// The data of an answer, or what is wrong with the question.
    fn ask(&self, path: &str, question: Option<&str>) -> Result<Value, String> {
        let mut curl = command(self.world.relay.host(), "curl");
        curl.args(["--silent", "--show-error", "--max-time", "30", "--get"]);
        if let Some(question) = question {
            curl.arg("--data-urlencode")
                .arg(format!("query={question}"));
        }
        curl.arg(format!("http://127.0.0.1:9090{path}"));
        let answer = output_of(curl, b"");
        // Not ready yet is no JSON.
        let answer: Value = serde_json::from_str(&answer).map_err(|_| answer)?;
        match answer["status"] == "success" {
            true => Ok(answer["data"].clone()),
            false => Err(answer["error"].to_string()),
        }
    }
}

fn prometheus_answers() {
    let world = World::furnished("prometheus", 80, WITH_CHECKSUM, with_everything);
    let prometheus = Prometheus::start(&world);
    let mut unanswered = questions(&dashboard());
    let mut why = String::new();
    let deadline = Instant::now() + BOUND;
    while !unanswered.is_empty() {
        assert!(
            Instant::now() < deadline,
            "without an answer: {unanswered:#?} {why}"
        );
        // Sessions of both ends, one after the other: rates need two scrapes that differ.
        traffic(&world);
        unanswered.retain(|(who, question)| {
            match prometheus.ask("/api/v1/query", Some(&filled(question))) {
                // What is marked on the time line is what a relay that works does not do.
                Ok(data) => {
                    who != ANNOTATION && data["result"].as_array().is_none_or(Vec::is_empty)
                }
                Err(error) => {
                    why = error;
                    true
                }
            }
        });
        thread::sleep(ROUND);
    }
    let rules = prometheus.ask("/api/v1/rules", None).expect("it has rules");
    let groups = rules["groups"].as_array().expect("in groups");
    let rules: Vec<&Value> = groups
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
        .collect();
    assert_eq!(
        rules.len(),
        text("prometheus/rules.yml")
            .matches("\n        expr: ")
            .count()
    );
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule:#}");
        if rule["type"] == "recording" {
            let name = rule["name"].as_str().expect("a rule has a name");
            let recorded = until(|| {
                let data = prometheus.ask("/api/v1/query", Some(name)).ok()?;
                data["result"]
                    .as_array()
                    .filter(|all| !all.is_empty())
                    .map(Vec::len)
            });
            assert!(recorded.is_some(), "nothing is recorded as {name}");
        } else {
            assert_ne!(
                rule["state"], "firing",
                "a relay that works is no reason for alarm: {rule:#}"
            );
        }
    }
}
