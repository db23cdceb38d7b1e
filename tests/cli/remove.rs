//! `chron-cli rm` and `metrics`.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use super::common::need::{Need, require};
use super::common::{DEADLINE, Running};
use super::{Bus, PROGRAM, assert_fails, assert_is_usage, code, stderr};

#[test]
fn rm_asks_before_it_removes_what_would_be_missed() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    bus.stdout(&["readers", "q", "add", "alice"]);
    let said = "q: not removed: 3 messages, 1 reader; --force removes it, --dry-run shows what goes";
    assert_fails(&bus.run(&["rm", "q"]), &[said]);
    assert_fails(&bus.run_with(&["rm", "q"], b"y\n"), &[said]);
    let text = bus.stdout(&["rm", "-n", "q"]);
    assert!(text.starts_with("would remove q: 3 messages, 1 reader, "), "{text}");
    assert_eq!(bus.tail(&["q"]), [1, 2, 3]);
    assert_eq!(bus.stdout(&["rm", "--force", "q"]), "");
    assert!(!bus.path("q").exists());
    assert_fails(
        &bus.run(&["rm", "-f", "q"]),
        &["q: nothing to remove: there is no such directory; 'chron-cli ls DIRECTORY' lists"],
    );
    assert_is_usage(&bus.run(&["rm"]), &[]);

    for name in ["a", "b"] {
        bus.stdout(&["create", name]);
    }
    bus.stdout(&["rm", "a", "b"]);
    assert!(!bus.path("a").exists() && !bus.path("b").exists(), "nothing is missed with an empty queue");
}

#[test]
fn rm_asks_on_a_terminal() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    let answer = |word: &str| {
        let typed = format!("printf '{word}\\n' | timeout 20 script -qec '{PROGRAM} rm q' /dev/null");
        let output = Command::new("sh").args(["-c", &typed]).current_dir(bus.0.path()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = answer("n");
    assert!(said.contains("chron-cli: remove q (3 messages, 0 readers)? [y/N]") && bus.path("q").exists(), "{said}");
    answer("y");
    assert!(!bus.path("q").exists());
}

#[test]
fn rm_leaves_queues_in_use_and_what_is_not_the_queues_own() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    let queue = chronfs::Queue::open(bus.path("q")).unwrap();
    let writer = queue.writer().unwrap();
    assert_fails(&bus.run(&["rm", "-f", "q"]), &["q: another writer holds the queue: process"]);
    drop(writer);
    let reader = queue.reader("alice").unwrap();
    assert_fails(&bus.run(&["rm", "-f", "q"]), &["reader is in use: process"]);
    drop(reader);
    fs::write(bus.path("q/notes.md"), "mine").unwrap();
    let output = bus.run(&["rm", "-f", "q"]);
    let said = "chron-cli: q: not the queue's own, so left there: q/notes.md\n";
    assert_eq!((code(&output), stderr(&output).as_str()), (0, said));
    assert_eq!(fs::read_dir(bus.path("q")).unwrap().count(), 1);
    assert_fails(&bus.run(&["rm", "-f", "."]), &["not a queue"]);
}

#[test]
fn what_a_killed_rm_leaves_is_hidden_explained_and_finished() {
    let bus = Bus::new();
    bus.numbered("bus/q", 3);
    bus.numbered("bus/other", 3);
    let left = bus.path("bus/.q.0123456789abcdef.removed");
    fs::rename(bus.path("bus/q"), &left).unwrap();
    assert_eq!(bus.stdout(&["ls", "bus"]).lines().count(), 2);
    assert_eq!(bus.stdout(&["watch", "--once", "bus"]).lines().count(), 1);
    let output = bus.run(&["doctor", "bus"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(code(&output), 1, "{text}");
    let (what, remedy) = ("unfinished-removal: the removal of q was interrupted", "-> finish it: chron-cli rm bus/q\n");
    assert!(text.contains(what) && text.contains(remedy) && text.contains("1 queue checked"), "{text}");
    bus.stdout(&["rm", "bus/q"]);
    assert!(!left.exists());
    bus.stdout(&["doctor", "bus"]);
}

#[test]
fn a_removal_that_fails_half_way_says_how_to_go_on() {
    let bus = Bus::new();
    bus.numbered("q", 3);
    bus.stdout(&["readers", "q", "add", "alice"]);
    if !require(Need::Admin) {
        return;
    }
    // Nothing can be removed while something is mounted there.
    let segment = bus.path("q/000000000.q");
    let run = format!("mount --bind '{0}' '{0}' && exec '{PROGRAM}' rm -f q", segment.display());
    let output = Command::new("unshare").args(["-m", "sh", "-c", &run]).current_dir(bus.0.path()).output().unwrap();
    assert_fails(&output, &["; the queue is hidden, and in part removed: chron-cli rm q removes the rest\n"]);
    assert!(!bus.path("q").exists());
    assert_eq!(bus.stdout(&["rm", "q"]), "");
    assert_eq!(fs::read_dir(bus.0.path()).unwrap().count(), 0);
}

#[test]
fn metrics_are_those_of_a_mount() {
    let bus = Bus::new();
    bus.numbered("bus/market/a", 3);
    bus.numbered("bus/b", 2);
    bus.stdout(&["readers", "bus/b", "add", "alice"]);
    chronfs::bus::mark_ready(bus.path("bus/b")).unwrap();
    chronfs::bus::write_lease(bus.path("bus/b"), std::time::Duration::from_secs(3600), "x").unwrap();
    let text = bus.stdout(&["metrics", "bus"]);
    for line in [
        "chronfs_queue_messages{queue=\"market/a\"} 3\n",
        "chronfs_queue_lease_live{queue=\"b\"} 1\n",
        "chronfs_reader_lag_messages{queue=\"b\",reader=\"alice\"} 2\n",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    for of_itself in [bus.command(&["metrics", "bus/b"]), bus.command_in("bus/b", &["metrics"])] {
        let text = text_of(of_itself);
        assert!(text.contains("chronfs_queue_messages{queue=\"b\"} 2\n"), "a queue has its own name: {text}");
    }
    fs::create_dir(bus.path("damaged")).unwrap();
    fs::write(bus.path("damaged/control.meta"), "garbage").unwrap();
    let output = bus.run(&["metrics", "damaged"]);
    assert_eq!(code(&output), 1);
    assert!(String::from_utf8_lossy(&output.stdout).contains("chronfs_queue_readable{queue=\"damaged\"} 0\n"));
    if require(Need::Mount) {
        fs::create_dir(bus.path("mnt")).unwrap();
        bus.stdout(&["mount", "bus", "mnt"]);
        let shown = fs::read_to_string(bus.path("mnt/.chronfs/metrics"));
        bus.stdout(&["umount", "mnt"]);
        assert_eq!(shown.unwrap(), bus.stdout(&["metrics", "bus"]));
    }
}

/// A request, and the answer to it.
fn ask(address: &str, request: &str) -> String {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_are_served_on_this_host() {
    let bus = Bus::new();
    bus.numbered("bus/q", 3);
    // Without `timeout`, which would leave it running if the test fails.
    let mut server = Command::new(PROGRAM);
    server.args(["metrics", "--listen", "0", "bus"]).current_dir(bus.0.path()).stderr(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(server.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let server = Running::new(server);
    let address =
        line.trim().strip_prefix("chron-cli: listening on http://").and_then(|url| url.strip_suffix("/metrics"));
    let address = address.unwrap_or_else(|| panic!("{line}"));
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    // Clients that say nothing keep nobody else out for long.
    let _silent = [(); 3].map(|()| TcpStream::connect(address).unwrap());
    for round in 3..6 {
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
            "{head}"
        );
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
        assert_eq!(body, bus.stdout(&["metrics", "bus"]));
        assert!(body.contains(&format!("chronfs_queue_messages{{queue=\"q\"}} {round}\n")), "{body}");
        bus.append("bus/q", "txt", b"one more\n");
    }
    for (request, status) in [
        ("HEAD /metrics HTTP/1.0\r\n\r\n", "200 OK"),
        ("GET /?x HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
    ] {
        let answer = ask(address, request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{request}: {answer}");
    }
    fs::rename(bus.path("bus"), bus.path("elsewhere")).unwrap();
    let answer = ask(address, "GET /metrics HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_fails(&bus.run(&["metrics", "--listen", address, "elsewhere"]), &["cannot listen on 127.0.0.1:", "in use"]);
    drop(server);
}

fn text_of(mut command: Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// However far it got: nobody ever sees a part of the queue, and the next removal leaves nothing.
#[test]
fn rm_can_be_killed_at_any_time() {
    let bus = Bus::new();
    fs::create_dir(bus.path("bus")).unwrap();
    let path = bus.path("bus/q");
    let settings = chronfs::queue::Settings { segment_size: 64 << 10, ..Default::default() };
    for round in 0..15_u32 {
        let queue = chronfs::Queue::create(&path, &settings).unwrap();
        let mut writer = queue.writer().unwrap();
        for _ in 0..30 {
            writer.append(1, &[7; 20_000]).unwrap();
        }
        drop(writer);
        let mut rm = Command::new(PROGRAM).args(["rm", "-f", "q"]).current_dir(bus.path("bus")).spawn().unwrap();
        // Before it begins, or from its first step on until it has ended.
        while round % 5 > 0 && path.exists() && rm.try_wait().unwrap().is_none() {}
        (0..4 * round * round).for_each(|_| drop(rm.try_wait()));
        rm.kill().unwrap();
        rm.wait().unwrap();
        if path.exists() {
            let bounds = chronfs::Queue::open(&path).unwrap().bounds().unwrap();
            assert_eq!((bounds.first_seq, bounds.next_seq), (1, 31), "it is whole");
        }
        if fs::read_dir(bus.path("bus")).unwrap().count() > 0 {
            bus.stdout(&["rm", "-f", "bus/q"]);
        }
        assert_eq!(fs::read_dir(bus.path("bus")).unwrap().count(), 0);
    }
}
