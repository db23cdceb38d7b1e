//! `chron-cli top` as a user sees it: in a terminal (tmux), controlled by keys. And `--once`, for logs.

use std::process::Command;
use std::time::{Duration, Instant};

use super::common::need::{Need, require};
use super::{Bus, PROGRAM, code, stderr};

/// Time limit for anything that must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// Our own terminal of 100 by 24; removed at the end, whatever happens.
struct Terminal {
    socket: String,
}

impl Terminal {
    /// None where there is no tmux.
    #[track_caller]
    fn new(bus: &Bus, command: &str) -> Option<Self> {
        if !require(Need::Tmux) {
            return None;
        }
        let terminal = Self { socket: bus.path("tmux").to_str().unwrap().to_owned() };
        // A shell, so that the screen can be seen after the command has ended.
        let dir = bus.0.path().to_str().unwrap();
        let session = ["new-session", "-d", "-x", "100", "-y", "24", "-c", dir, "env PS1='shell> ' LC_ALL=C sh"];
        terminal.tmux(&session);
        terminal.until("shell>");
        terminal.keys(&[command, "Enter"]);
        Some(terminal)
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut command = Command::new("timeout");
        command.args(["-k", "1", "10", "tmux", "-S", &self.socket, "-f", "/dev/null"]).args(args);
        let output = command.env_remove("TMUX").output().unwrap();
        assert!(output.status.success(), "tmux {args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"][..], keys].concat());
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen shows this; the screen.
    fn until(&self, part: &str) -> String {
        self.until_so(part, |screen| screen.contains(part))
    }

    fn until_so(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let screen = self.screen();
            if is_so(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "the screen does not show {what}:\n{screen}");
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut command = Command::new("timeout");
        let _ = command.args(["10", "tmux", "-S", &self.socket, "kill-server"]).output();
    }
}

/// The cell of a queue's line under a heading, both by their right ends.
fn messages_of(screen: &str, queue: &str) -> Option<u64> {
    let line = screen.lines().find(|line| line.trim_start_matches(['>', ' ']).starts_with(queue))?;
    line.split_whitespace().filter_map(|word| word.parse().ok()).next()
}

#[test]
fn top_shows_what_happens_and_handles_keys() {
    let bus = Bus::new();
    bus.numbered("bus/ticks", 5);
    bus.numbered("bus/orders", 3);
    bus.stdout(&["readers", "bus/ticks", "add", "billing"]);
    let Some(terminal) = Terminal::new(&bus, &format!("{PROGRAM} top --interval 100ms bus")) else { return };
    let screen = terminal.until("q quit");
    assert!(screen.starts_with("chron-cli top bus: 2 queues"), "{screen}");
    assert_eq!((messages_of(&screen, "ticks"), messages_of(&screen, "orders")), (Some(5), Some(3)), "{screen}");

    bus.append("bus/ticks", "txt", b"one\ntwo\n");
    terminal.until_so("seven messages", |screen| messages_of(screen, "ticks") == Some(7));
    bus.append("bus/new", "txt", b"x\n");
    terminal.until("3 queues");
    chronfs::bus::mark_ready(bus.path("bus/new")).unwrap();
    terminal.until_so("ready", |screen| screen.lines().any(|line| line.contains("new") && line.contains("yes")));

    terminal.until_so("the first chosen", |screen| screen.contains("> new"));
    terminal.keys(&["End"]);
    terminal.until("> ticks");
    terminal.keys(&["Enter"]);
    let screen = terminal.until("readers of ticks");
    assert!(screen.contains("billing") && screen.contains("lags by 7"), "{screen}");
    terminal.keys(&["Escape"]);
    terminal.until_so("no readers", |screen| !screen.contains("readers of ticks"));
    terminal.keys(&["k"]);
    terminal.until("> orders");
    terminal.keys(&["s"]);
    terminal.until("by rate");
    terminal.keys(&["p"]);
    terminal.until("PAUSED");
    terminal.keys(&["p"]);
    terminal.keys(&["?"]);
    terminal.until("this help");

    terminal.keys(&["?"]);
    terminal.keys(&["C-z"]);
    let screen =
        terminal.until_so("the shell", |screen| screen.matches("shell>").count() > 0 && !screen.contains("q quit"));
    assert!(!screen.contains("QUEUE"), "{screen}");
    terminal.keys(&["fg", "Enter"]);
    terminal.until("q quit");

    terminal.tmux(&["resize-window", "-x", "60", "-y", "10"]);
    let screen = terminal.until_so("a small screen", |screen| screen.contains("q quit") && screen.contains("orders"));
    assert!(screen.lines().count() <= 10, "{screen}");
    terminal.keys(&["q"]);
    let screen = terminal.until("shell>");
    assert!(!screen.contains("q quit"), "the screen is restored:\n{screen}");
    terminal.keys(&["echo still $((40 + 2))", "Enter"]);
    terminal.until("still 42");
}

#[test]
fn top_restores_the_terminal_when_it_is_killed() {
    let bus = Bus::new();
    bus.numbered("q", 1);
    let Some(terminal) = Terminal::new(&bus, &format!("{PROGRAM} top . & echo $! > pid; fg; echo code $?")) else {
        return;
    };
    terminal.until("q quit");
    let pid = std::fs::read_to_string(bus.path("pid")).unwrap();
    assert!(Command::new("kill").arg(pid.trim()).status().unwrap().success());
    let screen = terminal.until("code 143");
    assert!(!screen.contains("q quit"), "{screen}");
}

#[test]
fn top_without_a_terminal_says_what_to_do() {
    let bus = Bus::new();
    bus.numbered("q", 4);
    let output = bus.run(&["top", "."]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("chron-cli top --once ROOT"), "{}", stderr(&output));
    let text = bus.stdout(&["top", "--once", "--interval", "100ms", "."]);
    assert!(text.starts_with("chron-cli top .: 1 queue,") && messages_of(&text, "q") == Some(4), "{text}");
    assert!(!text.contains('\x1b') && !text.contains("quit") && !text.contains('>'), "{text}");
    for wrong in ["1ms", "2m", "1"] {
        assert_eq!(code(&bus.run(&["top", "--interval", wrong, "."])), 2, "{wrong}");
    }
    let output = bus.run(&["top", "missing"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).starts_with("chron-cli: missing: cannot list"), "{}", stderr(&output));
}
