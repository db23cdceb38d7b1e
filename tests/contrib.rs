//! What lies in `contrib/` names only figures that exist, and is accepted by the programs it is for.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::need::{Need, require};
use common::{program, text};

const CONTRIB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib");

/// The figures of a bus that has one of everything.
fn metrics() -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders");
    let queue = chronfs::Queue::create(&path, &chronfs::queue::Settings::default()).unwrap();
    queue.writer().unwrap().append(1, b"hello").unwrap();
    drop(queue.reader("billing").unwrap());
    chronfs::bus::mark_ready(&path).unwrap();
    chronfs::bus::write_lease(&path, Duration::from_secs(60), "here").unwrap();
    fs::create_dir(path.join(chronfs::bus::RELAY_DIR)).unwrap();
    let relay = r#"{"name":"out","direction":"out","target":"nats://host/ORDERS","condition":"running","reason":null,
        "healthy":true,"lag_messages":0,"lag_bytes":0,"lag_seconds":0,"last_progress_seconds":0,"written":0}"#;
    fs::write(path.join(chronfs::bus::RELAY_DIR).join("out.json"), relay).unwrap();
    let output = Command::new(program()).arg("metrics").arg(dir.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The names of figures in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("chronfs_")).collect()
}

#[test]
fn alerts_and_dashboard_name_figures_that_exist() {
    let metrics = metrics();
    let existing = names(&metrics);
    for file in ["prometheus/alerts.yml", "prometheus/alerts_test.yml", "grafana.json"] {
        let content = fs::read_to_string(Path::new(CONTRIB).join(file)).unwrap();
        let named = names(&content);
        assert!(named.len() > 5, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&existing).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?} are not among {existing:?}");
    }
}

#[test]
fn the_dashboard_is_one() {
    let board = fs::read_to_string(Path::new(CONTRIB).join("grafana.json")).unwrap();
    let board: serde_json::Value = serde_json::from_str(&board).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "numbers of panels are unique");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for cell in (place("x")..place("x") + place("w"))
            .flat_map(|x| (place("y")..place("y") + place("h")).map(move |y| (x, y)))
        {
            assert!(cell.0 < 24 && taken.insert(cell), "{}: {cell:?} is taken", panel["title"]);
        }
        let [title, description, expr] =
            ["/title", "/description", "/targets/0/expr"].map(|at| panel.pointer(at).unwrap().as_str().unwrap());
        assert!(!title.is_empty() && !description.is_empty() && expr.contains("chronfs_"), "{title}");
    }
}

#[test]
fn prometheus_accepts_figures_and_rules() {
    if !require(Need::Promtool) {
        return;
    }
    let promtool = |args: &[&str], input: &str| {
        let mut command = Command::new("promtool");
        command.args(args).current_dir(Path::new(CONTRIB).join("prometheus"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        said
    };
    assert!(promtool(&["check", "rules", "alerts.yml"], "").contains("rules found"));
    assert!(promtool(&["test", "rules", "alerts_test.yml"], "").contains("SUCCESS"));
    assert_eq!(promtool(&["check", "metrics"], &metrics()), "", "nothing to complain of");
}
