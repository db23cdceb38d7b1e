//! The whole bus at once: `.merged/` and `.chronfs/`, and a bus with many queues.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use chronfs::Queue;
use chronfs::queue::Settings;
use common::need::{Need, require};
use common::{TestMount, chron_cli, text, writer};

fn make(root: &Path, name: &str, messages: &[(u64, &str)]) {
    let settings = Settings { segment_size: 65536, ..Settings::default() };
    let mut writer = writer(&Queue::create(root.join(name), &settings).unwrap());
    for (time, payload) in messages {
        writer.append_at(*time, 1, payload.as_bytes()).unwrap();
    }
}

/// `feeds/a` and `feeds/deep/b`, and `other` beside them.
fn mount() -> Option<TestMount> {
    TestMount::over(
        |root| {
            make(root, "feeds/a", &[(10, "a1"), (30, "a2"), (30, "a3")]);
            make(root, "feeds/deep/b", &[(5, "b1"), (30, "b2"), (40, "b3")]);
            make(root, "other", &[(20, "o1")]);
        },
        "rw",
    )
}

#[test]
fn merged_queues_come_by_time() {
    let Some(mount) = mount() else { return };
    assert_eq!(mount.ok("tr '\\n' ' ' < .merged/messages.txt"), "b1 a1 o1 a2 a3 b2 b3 ");
    assert_eq!(mount.ok("cat feeds/.merged/messages.bin feeds/deep/.merged/messages.bin"), "b1a1a2a3b2b3b1b2b3");
    assert_eq!(
        mount.ok("jq -c '[.seq, .queue, .payload]' feeds/.merged/messages.jsonl | head -n 2"),
        "[1,\"deep/b\",\"b1\"]\n[1,\"a\",\"a1\"]\n"
    );
    assert_eq!(
        mount.ok("jq -c keys_unsorted .merged/messages.jsonl | head -n 1"),
        "[\"seq\",\"queue\",\"timestamp_ns\",\"time\",\"type\",\"payload\"]\n"
    );
    assert_eq!(mount.ok("stat -c '%s %F' .merged/messages.txt"), "21 regular file\n");
    assert_eq!(mount.ok("tail -n 1 .merged/messages.txt; wc -l < .merged/messages.jsonl"), "b3\n7\n");
    assert_eq!(mount.ok("grep -c '^#' .merged/messages.hex"), "7\n");
    assert!(mount.fails("ls feeds/a/.merged").contains("No such file"));
    for blocks in ["1", "3", "7", "64k"] {
        assert_eq!(
            mount.ok(&format!("dd if=.merged/messages.txt bs={blocks} 2> ../err | tr '\\n' ' '")),
            "b1 a1 o1 a2 a3 b2 b3 "
        );
    }
}

#[test]
fn a_merged_snapshot_can_be_read_again_from_anywhere() {
    let Some(mount) = mount() else { return };
    assert_eq!(mount.ok("less .merged/messages.txt | tr '\\n' ' '"), "b1 a1 o1 a2 a3 b2 b3 ");
    let python = "import os, random\n\
                  whole = open('.merged/messages.jsonl', 'rb').read()\n\
                  fd = os.open('.merged/messages.jsonl', os.O_RDONLY)\n\
                  for _ in range(200):\n\
                  \x20   at, size = random.randrange(len(whole) + 9), random.randrange(1, 300)\n\
                  \x20   assert os.pread(fd, size, at) == whole[at:at + size], (at, size)\n";
    std::fs::write(mount.root().with_file_name("anywhere.py"), python).unwrap();
    mount.ok("echo later > other/append.txt; python3 ../anywhere.py");
}

#[test]
fn a_gap_that_a_merged_snapshot_does_not_show_is_an_error_once() {
    let Some(mount) = mount() else { return };
    let path = mount.root().join("feeds/a/000000000.q");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(2).position(|window| window == b"a2").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let python = "import os\n\
                  fd = os.open('.merged/messages.bin', os.O_RDONLY)\n\
                  print(os.read(fd, 100))\n\
                  try: os.read(fd, 100)\n\
                  except OSError as e: print(e.strerror)\n\
                  print(os.read(fd, 100))\n";
    std::fs::write(mount.root().with_file_name("gap.py"), python).unwrap();
    assert_eq!(mount.ok("python3 ../gap.py"), "b'b1a1'\nInput/output error\nb'o1a3b2b3'\n");
}

#[test]
fn a_merged_follower_hears_of_all_queues_and_of_new_ones() {
    let Some(mount) = mount() else { return };
    let follower = mount.start("head", &["-n", "3", ".merged/follow.jsonl"]);
    mount.wait_until_blocked(&follower);
    mount.ok("echo x > feeds/a/append.txt");
    mount.wait_until_blocked(&follower);
    mount.ok("echo y > other/append.txt");
    mount.wait_until_blocked(&follower);
    mount.ok("mkdir fresh; echo z > fresh/append.txt");
    let lines: Vec<serde_json::Value> =
        text(&follower.output().stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let shown: Vec<_> = lines.iter().map(|l| format!("{}:{}", l["queue"], l["payload"])).collect();
    assert_eq!(shown, ["\"feeds/a\":\"x\"", "\"other\":\"y\"", "\"fresh\":\"z\""]);
    // In an empty bus there is nothing to wait for yet; signals and unmounting end the read nevertheless.
    mount.ok("mkdir empty");
    let follower = mount.start("cat", &["empty/.merged/follow.txt"]);
    mount.wait_until_blocked(&follower);
    follower.signal("TERM");
    assert!(!follower.output().status.success());
    let follower = mount.start("cat", &["empty/.merged/follow.txt"]);
    mount.wait_until_blocked(&follower);
    common::detach(&mount.mountpoint());
    assert!(text(&follower.output().stderr).contains("endpoint is not connected"));
}

#[test]
fn merged_followers_can_be_polled() {
    let Some(mount) = mount() else { return };
    let python = r#"
import os, select, subprocess
fd = os.open(".merged/follow.txt", os.O_RDONLY | os.O_NONBLOCK)
p = select.poll(); p.register(fd, select.POLLIN)
assert p.poll(50) == []
for queue in ["feeds/a", "other", "feeds/deep/b"]:
    child = subprocess.Popen(["sh", "-c", "sleep 0.1; echo %s > %s/append.txt" % (queue, queue)])
    assert p.poll(10000) == [(fd, select.POLLIN)]
    assert os.read(fd, 100) == queue.encode() + b"\n"
    child.wait()
assert p.poll(50) == []
"#;
    std::fs::write(mount.root().with_file_name("poll.py"), python).unwrap();
    mount.ok("python3 -S ../poll.py");
}

#[test]
fn nobody_reads_through_the_merge_what_they_may_not_read() {
    if !require(Need::Root) {
        return;
    }
    let Some(mount) = TestMount::over(
        |root| {
            make(root, "open", &[(1, "public")]);
            make(root, "closed", &[(2, "secret")]);
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            std::fs::set_permissions(root.join("closed"), private).unwrap();
            let public = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(root, public()).unwrap();
            std::fs::set_permissions(root.parent().unwrap(), public()).unwrap();
        },
        "allow_other",
    ) else {
        return;
    };
    let other = |script: &str| mount.ok(&format!("setpriv --reuid 65534 --regid 65534 --clear-groups {script}"));
    assert_eq!(mount.ok("cat .merged/messages.txt"), "public\nsecret\n");
    assert_eq!(other("cat .merged/messages.txt"), "public\n");
    assert_eq!(other("jq -c '[.queues[].messages]' .chronfs/status.json"), "[1]\n");
    assert!(!other("cat .chronfs/metrics").contains("closed"));
}

/// One metric line: a name, labels in braces, a number.
fn check_sample(line: &str) {
    let (name, rest) = line.split_once('{').unwrap();
    assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
    let (labels, value) = rest.rsplit_once("} ").unwrap();
    assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").unwrap();
        assert!(label.bytes().all(|b| b.is_ascii_lowercase()), "{line}");
        let mut escaped = false;
        let end = after
            .find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })
            .unwrap();
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

#[test]
fn the_metrics_are_sound() {
    let Some(mount) = mount() else { return };
    mount.ok("mkdir feeds/a/readers/alice && echo 2 > feeds/a/readers/alice/position && touch other/READY");
    std::fs::write(mount.root().join("readme.md"), "no queue").unwrap();
    let metrics = mount.ok("cat .chronfs/metrics");
    assert!(metrics.ends_with("\n# EOF\n"));
    let mut family = String::new();
    let mut seen = std::collections::BTreeSet::new();
    for line in metrics.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.strip_suffix(" gauge").unwrap().to_owned();
            assert!(seen.insert(family.clone()), "{family} comes twice");
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(rest.starts_with(&format!("{family} ")), "{line}");
        } else {
            assert!(line.starts_with(&format!("{family}{{")), "{line} does not belong to {family}");
            check_sample(line);
        }
    }
    for line in [
        "chronfs_queue_messages{queue=\"feeds/a\"} 3",
        "chronfs_queue_last_seq{queue=\"feeds/deep/b\"} 3",
        "chronfs_queue_ready{queue=\"other\"} 1",
        "chronfs_queue_ready{queue=\"feeds/a\"} 0",
        "chronfs_reader_position{queue=\"feeds/a\",reader=\"alice\"} 2",
        "chronfs_reader_lag_messages{queue=\"feeds/a\",reader=\"alice\"} 2",
    ] {
        assert!(metrics.lines().any(|other| other == line), "{line}\n{metrics}");
    }
    if let Ok(promtool) = std::env::var("PROMTOOL") {
        mount.ok(&format!("{promtool} check metrics < .chronfs/metrics"));
    }
}

/// Relays say how they are in files; whoever looks at the queue sees it, and sees when they have died.
#[test]
fn relays_are_shown_wherever_a_queue_is() {
    let Some(mount) = mount() else { return };
    let queue = mount.root().join("feeds/a");
    std::fs::create_dir(queue.join("relay")).unwrap();
    let write = |name: &str, condition: &str, healthy: bool, written: f64| {
        let json = format!(
            r#"{{"name":"{name}","direction":"out","target":"nats://h/A","condition":"{condition}",
            "reason":"no\u001b[31m answer","healthy":{healthy},"lag_messages":7,"lag_bytes":2048,"lag_seconds":3.5,
            "last_progress_seconds":4.0,"written":{written},"counts":{{"retries":1}}}}"#
        );
        std::fs::write(queue.join(format!("relay/{name}.json")), json).unwrap();
    };
    let now = chronfs::clock::now_ns() as f64 / 1e9;
    write("well", "running", true, now + 3600.0);
    write("stuck", "waiting", false, now + 3600.0);
    write("dead", "running", true, now - 1000.0);

    let cli = |args: &[&str]| text(&chron_cli().args(args).current_dir(mount.root()).output().unwrap().stdout);
    let inspected = cli(&["inspect", "feeds/a"]);
    for (name, lag) in [("well", "running"), ("stuck", "no\\u{1b}[31m answer"), ("dead", "it has said nothing for")] {
        let line = inspected.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{inspected}"));
        assert!(line.contains(lag) && line.contains("7  2.0 KiB") && line.contains("3.5"), "{line}");
    }
    let relays_of = |status: &str| status.split_once("\nrelay ").map(|(_, table)| table.replace(char::is_numeric, ""));
    assert_eq!(relays_of(&mount.ok("cat feeds/a/status")), relays_of(&inspected));
    for json in [cli(&["inspect", "--json", "feeds/a"]), mount.ok("cat feeds/a/status.json")] {
        let status: serde_json::Value = serde_json::from_str(&json).unwrap();
        let [dead, stuck, well] = &status["relays"].as_array().unwrap()[..] else { panic!("{json}") };
        assert_eq!((&well["lag_messages"], &well["trouble"]), (&7.into(), &serde_json::Value::Null));
        assert!(stuck["trouble"].as_str().unwrap().contains("lag 7 messages"), "{stuck}");
        assert!(dead["trouble"].as_str().unwrap().contains("dead"), "{dead}");
    }
    for metrics in [cli(&["metrics", "."]), mount.ok("cat .chronfs/metrics")] {
        for (name, healthy) in [("well", 1), ("stuck", 0), ("dead", 0)] {
            let labels = format!("{{queue=\"feeds/a\",relay=\"{name}\",direction=\"out\"}}");
            for line in [
                format!("chronfs_relay_healthy{labels} {healthy}"),
                format!("chronfs_relay_lag_messages{labels} 7"),
                format!("chronfs_relay_lag_bytes{labels} 2048"),
                format!("chronfs_relay_lag_seconds{labels} 3.5"),
            ] {
                assert!(metrics.lines().any(|other| other == line), "{line}\n{metrics}");
            }
        }
        let progress = metrics.lines().find_map(|line| {
            line.strip_prefix(
                "chronfs_relay_last_progress_seconds{queue=\"feeds/a\",relay=\"dead\",direction=\"out\"} ",
            )
        });
        assert!(progress.unwrap().parse::<f64>().unwrap() >= 1004.0, "{progress:?}");
    }
    let top = cli(&["top", "--once", "--interval", "100ms", "feeds"]);
    assert!(top.lines().any(|line| line.split_whitespace().next() == Some("a") && line.contains(" 7 ")), "{top}");
    let findings = cli(&["doctor", "--json", "."]);
    for name in ["stuck", "dead"] {
        assert!(findings.contains(&format!("feeds/a/relay/{name}.json")), "{findings}");
    }
    assert!(!findings.contains("relay/well.json"), "{findings}");
}

#[test]
fn the_root_tells_about_the_mount() {
    let Some(mount) = mount() else { return };
    assert_eq!(mount.ok("ls .chronfs"), "README\ndoctor\nlog\nmetrics\nstatus.json\nversion\n");
    assert_eq!(mount.ok("cat .chronfs/version"), format!("chronfs {}\n", env!("CARGO_PKG_VERSION")));
    assert!(mount.ok("cat .chronfs/README").contains("append.txt"));
    assert_eq!(mount.ok("jq -c '[.queues[].last_seq]' .chronfs/status.json"), "[3,3,1]\n");
    let diagnosis = mount.ok("cat .chronfs/doctor");
    assert!(diagnosis.ends_with("3 queues checked: all well\n"), "{diagnosis}");
    assert!(mount.fails("ls feeds/.chronfs").contains("No such file"));
}

#[test]
fn a_damaged_queue_does_not_hide_the_others() {
    let prepare = |root: &Path| {
        make(root, "a", &[(1, "a1")]);
        std::fs::create_dir(root.join("b")).unwrap();
        std::fs::write(root.join("b/control.meta"), "x").unwrap();
        std::fs::write(root.join("b/000000000.q"), "x").unwrap();
    };
    let Some(mount) = TestMount::over(prepare, "rw") else { return };
    assert_eq!(mount.ok("cat .merged/messages.bin"), "a1");
    assert!(mount.ok("cat .chronfs/metrics").contains("chronfs_queue_readable{queue=\"b\"} 0\n"));
    assert_eq!(mount.ok("jq -c '[.queues[].damaged]' .chronfs/status.json"), "[null,true]\n");
    let diagnosis = mount.ok("cat .chronfs/doctor");
    let place = format!("error    {}/b", mount.root().display());
    assert!(diagnosis.contains(&place) && diagnosis.ends_with("there are problems\n"), "{diagnosis}");
}

#[test]
fn a_bus_of_a_thousand_queues_is_listed_and_merged() {
    let Some(mount) = TestMount::over(
        |root| (0..1000).for_each(|n| make(root, &format!("d{}/q{n}", n % 10), &[(n + 1, "message")])),
        "rw",
    ) else {
        return;
    };
    assert_eq!(mount.ok("ls -l d0 | wc -l"), "101\n");
    assert_eq!(mount.ok("ls -l d*/ | grep -c ' q'"), "1000\n");
    assert_eq!(mount.ok("wc -l < .merged/messages.txt"), "1000\n");
    assert_eq!(mount.ok("grep -c ^chronfs_queue_messages .chronfs/metrics"), "1000\n");
}

/// However fast retention is, and whichever names are opened meanwhile.
#[test]
fn a_merged_follower_gets_each_message_once() {
    let settings = Settings { segment_size: 65536, retain_bytes: Some(2 << 16), ..Settings::default() };
    let Some(mount) = TestMount::over(|root| drop(Queue::create(root.join("q"), &settings).unwrap()), "rw") else {
        return;
    };
    let queue = Queue::open(mount.root().join("q")).unwrap();
    let mut follower = mount.start("cat", &[".merged/follow.txt"]);
    mount.wait_until_blocked(&follower);
    let mut lines = BufReader::new(follower.child().stdout.take().unwrap()).lines();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mount, over) = (&mount, &over);
        scope.spawn(move || {
            let mut writer = writer(&queue);
            while !over.load(Ordering::Relaxed) {
                let seq = writer.next_seq();
                writer.append(1, format!("{seq} {}", "-".repeat(300)).as_bytes()).unwrap();
                (0..20_000).for_each(|_| std::hint::spin_loop());
            }
        });
        for name in ["q/messages.txt", "q/messages.jsonl", "q/messages/last"] {
            let path = mount.mountpoint().join(name);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    // Retention may win: then it is an error for this one.
                    drop(std::fs::File::open(&path));
                }
            });
        }
        let (mut last, mut rolls) = (0, 0);
        while rolls < 100
            && let Some(line) = lines.next()
        {
            // Overtaken by retention, `cat` ends with an error: fewer rolls, and no line that was there before.
            let Ok(line) = line else { break };
            let number: u64 = line.split(' ').next().unwrap().parse().unwrap();
            assert!(number > last, "{number} after {last}");
            (last, rolls) = (number, number / 190);
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_plain_user_can_do_all_of_this() {
    common::plain_user::run_tests_again("a_plain_user_can_do_all_of_this");
}
