//! What docs/monitoring/ and the samples ask of a node is what a node exports: metrics, labels, runbooks. Prometheus' own
//! checker reads the rules and runs their tests.

use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[path = "support/node.rs"]
mod harness;
use harness::{Client, Node, TempDir, command};
#[path = "support/redis.rs"]
mod server;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = docs().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What a node on Redis exports: it has all that a node of its own has, and more.
fn exported() -> String {
    let redis = server::RedisServer::start(&[]);
    let dir = TempDir::new("monitoring");
    let url = format!("bus.redis.url=redis://127.0.0.1:{}", redis.port);
    let node = Node::from(&mut command(&dir.0, &["--set", "bus.kind=redis", "--set", &url]));
    let token = node.token(&dir.0, "ann");
    let mut client = Client::connect(&node, &token);
    client.publish("lobby", "hello", "c1");
    // The shards tell their figures once a second.
    let deadline = std::time::Instant::now() + harness::PATIENCE;
    loop {
        let (status, text) = node.get("/metrics");
        assert_eq!(status, 200);
        if text.contains("\nroomwire_connections 1\n") {
            return text;
        }
        assert!(std::time::Instant::now() < deadline, "{text}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// The metrics that a text names, each with the matchers that follow it.
fn named(text: &str) -> BTreeSet<(String, String)> {
    let is_name = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("roomwire_") {
        if text[..at].ends_with(is_name) {
            continue;
        }
        let rest = &text[at..];
        let (name, rest) = rest.split_at(rest.find(|letter| !is_name(letter)).unwrap_or(rest.len()));
        let matchers = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        found.insert((name.to_owned(), matchers.to_owned()));
    }
    found
}

/// Whether a line of the export is of this metric and has every `label="value"` that Prometheus does not add itself.
fn is_exported(exported: &str, name: &str, matchers: &str) -> bool {
    let wanted: Vec<&str> = matchers
        .split(',')
        .map(str::trim)
        .filter(|matcher| matcher.contains("=\"") && !matcher.contains("!=") && !matcher.starts_with("job="))
        .collect();
    exported.lines().any(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
            && wanted.iter().all(|matcher| line.contains(matcher))
    })
}

#[test]
fn every_metric_that_dashboard_alerts_and_samples_name_is_exported() {
    let exported = exported();
    let dashboard: Json = serde_json::from_str(&read("monitoring/dashboard.json")).expect("the dashboard is JSON");
    let texts = [
        ("alerts.yml", read("monitoring/alerts.yml")),
        ("dashboard.json", queries(&dashboard).join("\n")),
        ("kubernetes.yaml", read("samples/kubernetes.yaml")),
        ("instance-group.md", read("samples/instance-group.md")),
    ];
    for (file, text) in &texts {
        let named = named(text);
        assert!(!named.is_empty(), "{file} names no metric");
        for (name, matchers) in named {
            assert!(
                is_exported(&exported, &name, &matchers),
                "{file} names {name}{{{matchers}}}, which no node exports"
            );
        }
    }
    // And the page of all metrics has each.
    let page = read("operations.md");
    for name in exported.lines().filter_map(|line| line.strip_prefix("# TYPE roomwire_")) {
        let (name, kind) = name.split_once(' ').expect("a name and a type");
        let full =
            if kind == "counter" && !name.ends_with("_total") { format!("{name}_total") } else { name.to_owned() };
        assert!(
            page.contains(&format!("`{full}`")) || page.contains(&format!("`{full}{{")),
            "operations.md lacks {full}"
        );
    }
}

/// Every query of the dashboard.
fn queries(dashboard: &Json) -> Vec<String> {
    let mut queries = Vec::new();
    let mut todo = vec![dashboard];
    while let Some(value) = todo.pop() {
        if let Some(query) = value["expr"].as_str() {
            queries.push(query.to_owned());
        }
        match value {
            Json::Array(values) => todo.extend(values),
            Json::Object(fields) => todo.extend(fields.values()),
            _ => {}
        }
    }
    queries
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings =
        page.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect::<String>()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_alert_has_its_runbook_and_a_test_that_fires_it() {
    let (rules, tests) = (read("monitoring/alerts.yml"), read("monitoring/alerts_test.yml"));
    let anchors = anchors(&read("operations.md"));
    let mut alerts = 0;
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().expect("a name").trim();
        let link = rule.lines().find_map(|line| line.trim().strip_prefix("runbook_url: ")).expect("a runbook");
        let (page, anchor) = link.split_once('#').expect("an anchor");
        assert!(page.ends_with("/docs/operations.md"), "{page}");
        assert_eq!(anchor, name.to_lowercase());
        assert!(anchors.contains(anchor), "operations.md has no heading for {name}");
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "no test fires {name}");
        alerts += 1;
    }
    assert!(alerts >= 20, "{alerts}");
}

fn promtool(dir: &Path, args: &[&str]) -> String {
    let mut command = Command::new("promtool");
    let output = command.args(args).current_dir(dir).stdin(Stdio::null()).output();
    let output = output.expect("promtool runs: scripts/setup test installs it");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {args:?}: {said}");
    said
}

#[test]
fn prometheus_takes_the_rules_and_each_fires_when_it_should() {
    let dir = docs().join("monitoring");
    promtool(&dir, &["check", "rules", "alerts.yml"]);
    promtool(&dir, &["test", "rules", "alerts_test.yml"]);
}

#[test]
fn prometheus_takes_every_query_of_the_dashboard() {
    let dashboard: Json = serde_json::from_str(&read("monitoring/dashboard.json")).expect("the dashboard is JSON");
    let queries = queries(&dashboard);
    assert!(queries.len() >= 50, "{}", queries.len());
    let rules: Vec<Json> = queries
        .iter()
        .enumerate()
        .map(|(number, query)| {
            let expr = query.replace("$__rate_interval", "5m");
            serde_json::json!({ "record": format!("query:{number}"), "expr": expr })
        })
        .collect();
    // JSON is YAML too.
    let file = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let dir = TempDir::new("dashboard");
    fs::write(dir.0.join("queries.yml"), file.to_string()).expect("writable");
    promtool(&dir.0, &["check", "rules", "queries.yml"]);
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64()), "two panels with the id {}", panel["id"]);
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().zip(place["w"].as_u64()).is_some_and(|(x, w)| x + w <= 24), "{place}");
    }
}
