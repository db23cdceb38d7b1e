//! `chron-cli mount` and `umount` as commands: when they return, what they say, and what they leave. What the mount
//! shows is tested elsewhere.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::common::need::{Need, require};
use super::common::{await_ready, until};
use super::{PROGRAM, code};

/// A bus directory and a place to mount it; unmounted at the end, whatever happens.
struct Site(TempDir);

impl Site {
    /// None where nothing can be mounted.
    #[track_caller]
    fn new() -> Option<Self> {
        if !require(Need::Mount) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("bus")).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Some(Self(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the helper that mount(8) calls.
    fn helper(&self) -> impl Fn(&[&str]) -> Output {
        let helper = self.path("mount.fuse.chronfs");
        std::os::unix::fs::symlink(PROGRAM, &helper).unwrap();
        move |args| self.command(&helper, args).output().unwrap()
    }

    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60"]).arg(program).args(args).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(Path::new(PROGRAM), args).output().unwrap()
    }

    /// Runs and expects success, in silence.
    fn succeed(&self, args: &[&str]) {
        let output = self.run(args);
        assert_eq!((code(&output), text(&output.stderr)), (0, String::new()), "{args:?}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
    }

    fn shell(&self, script: &str) -> String {
        let output = self.command(Path::new("bash"), &["-c", script]).output().unwrap();
        assert_eq!((code(&output), text(&output.stderr)), (0, String::new()), "{script}");
        text(&output.stdout)
    }

    /// A mount in the foreground, usable. It says so to the service manager, which is us.
    fn foreground(&self) -> Child {
        let manager = UnixDatagram::bind(self.path("notify")).unwrap();
        let mut child = Command::new(PROGRAM)
            .args(["mount", "-f", "bus", "mnt"])
            .current_dir(self.0.path())
            .env("NOTIFY_SOCKET", self.path("notify"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        await_ready(&mut child, &manager);
        fs::remove_file(self.path("notify")).unwrap();
        child
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.run(&["umount", "--lazy", "mnt"]);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn mount_returns_when_the_files_can_be_used_and_umount_removes_them() {
    let Some(site) = Site::new() else { return };
    site.succeed(&["mount", "bus", "mnt"]);
    let printed = site.shell("mkdir mnt/q && echo hello > mnt/q/append.txt && cat mnt/q/messages.txt");
    assert_eq!(printed, "hello\n");
    assert_eq!(text(&site.run(&["tail", "bus/q", "--format", "txt"]).stdout), "hello\n");
    assert!(site.shell("findmnt -n -t fuse.chronfs -o TARGET").contains("/mnt\n"));

    let again = site.run(&["mount", "bus", "mnt"]);
    assert_eq!(code(&again), 1);
    assert!(text(&again.stderr).contains("already mounted"), "{}", text(&again.stderr));

    site.succeed(&["umount", "mnt"]);
    assert_eq!(fs::read_dir(site.path("mnt")).unwrap().count(), 0);
    assert_eq!(code(&site.run(&["umount", "mnt"])), 1);
}

#[test]
fn another_user_is_told_whose_mount_it_is() {
    if !require(Need::Admin) || !require(Need::Fusermount) {
        return;
    }
    let Some(site) = Site::new() else { return };
    site.shell(&format!("chmod 755 . && cp {PROGRAM} chron-cli && chmod 755 chron-cli"));
    for options in ["ro", "allow_other"] {
        site.succeed(&["mount", "-o", options, "bus", "mnt"]);
        let words = ["--reuid=65534", "--regid=65534", "--clear-groups", "./chron-cli", "umount", "mnt"];
        let output = site.command(Path::new("setpriv"), &words).output().unwrap();
        let whole = site.path("mnt").display().to_string();
        let why = "cannot unmount: mounted by another user (root); only root can unmount it: sudo umount";
        super::assert_fails(&output, &[&format!("{whole}: {why} {whole}\n")]);
        site.succeed(&["umount", "mnt"]);
    }
}

#[test]
fn status_says_what_inspect_says() {
    let Some(site) = Site::new() else { return };
    fs::write(site.path("lines"), "a\nb\n").unwrap();
    assert_eq!(code(&site.run(&["append", "bus/q", "lines"])), 0);
    assert_eq!(code(&site.run(&["readers", "bus/q", "add", "alice"])), 0);
    site.succeed(&["mount", "bus", "mnt"]);
    let parse = |json: String| {
        let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
        // These differ by time and by view.
        value["writer"]["heartbeat_age_ms"] = 0.into();
        value["readers"][0]["heartbeat_age_ms"] = 0.into();
        value["path"] = "".into();
        value
    };
    let inspect = text(&site.run(&["inspect", "--json", "bus/q"]).stdout);
    assert_eq!(parse(site.shell("cat mnt/q/status.json")), parse(inspect));
}

#[test]
fn mount_errors_are_reported_at_once() {
    let Some(site) = Site::new() else { return };
    for (args, expected, part) in [
        (&["mount", "missing", "mnt"][..], 1, "missing: "),
        (&["mount", "bus", "missing"], 1, "missing: "),
        (&["mount", "bus", "bus"], 2, "contains the other"),
        (&["mount", "bus", "mnt", "-o", "readonly"], 2, "readonly"),
        (&["mount", "-f", "missing", "mnt"], 1, "missing: "),
    ] {
        let output = site.run(args);
        let words = text(&output.stderr);
        assert_eq!((code(&output), words.lines().count()), (expected, 1), "{args:?}: {words}");
        assert!(words.starts_with("chron-cli: ") && words.contains(part), "{words}");
    }
    assert_eq!(fs::read_dir(site.path("mnt")).unwrap().count(), 0);
}

#[test]
fn read_only_is_read_only() {
    let Some(site) = Site::new() else { return };
    fs::write(site.path("lines"), "a\n").unwrap();
    assert_eq!(code(&site.run(&["append", "bus/q", "lines"])), 0);
    site.succeed(&["mount", "-o", "ro,noauto", "-o", "x-anything", "bus", "mnt"]);
    let script =
        "echo x 2>&1 > mnt/q/append.txt || mkdir mnt/new 2>&1 || touch mnt/q/READY 2>&1 || cat mnt/q/messages.txt";
    let output = site.command(Path::new("bash"), &["-c", script]).output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(said.matches("Read-only file system").count(), 3, "{said}");
    assert!(said.ends_with("a\n") || said.starts_with("mkdir"), "{said}");
}

#[test]
fn a_signal_ends_a_mount_in_the_foreground() {
    let Some(site) = Site::new() else { return };
    for name in ["-INT", "-TERM"] {
        let mut child = site.foreground();
        site.shell("stat mnt > /dev/null");
        signal(&child, name);
        assert!(child.wait().unwrap().success(), "{name}");
        assert_eq!(code(&site.run(&["umount", "mnt"])), 1, "{name}: it is gone already");
    }
}

#[test]
fn a_dead_mount_is_unmounted_or_replaced() {
    let Some(site) = Site::new() else { return };
    let mut child = site.foreground();
    signal(&child, "-KILL");
    child.wait().unwrap();
    assert!(fs::read_dir(site.path("mnt")).is_err(), "a dead mount");
    site.succeed(&["umount", "mnt"]);
    assert!(fs::read_dir(site.path("mnt")).is_ok());

    let mut child = site.foreground();
    signal(&child, "-KILL");
    child.wait().unwrap();
    site.succeed(&["mount", "bus", "mnt"]);
    assert_eq!(site.shell("mkdir mnt/q && echo x > mnt/q/append.txt && cat mnt/q/messages.txt"), "x\n");
    site.succeed(&["umount", "mnt"]);
}

#[test]
fn a_mount_that_is_written_to_is_unmounted_only_lazily() {
    let Some(site) = Site::new() else { return };
    let open = |name| fs::File::options().write(true).open(site.path(name)).unwrap();
    site.succeed(&["mount", "bus", "mnt"]);
    site.shell("mkdir mnt/q");
    let mut writer = open("mnt/q/append.txt");
    let refused = site.run(&["umount", "mnt"]);
    let said = text(&refused.stderr);
    assert_eq!((code(&refused), said.lines().count()), (1, 1), "{said}");
    assert!(said.contains(&format!("process {} (", std::process::id())) && said.contains("mnt/q/append.txt"), "{said}");
    writer.write_all(b"x\n").unwrap();
    site.succeed(&["umount", "--lazy", "mnt"]);
    writer.write_all(b"y\n").unwrap();
    drop(writer);

    // The mount's process may hold the queue for a moment longer.
    let mut child = site.foreground();
    let reader = fs::File::open(site.path("mnt/q/messages.txt")).unwrap();
    site.succeed(&["umount", "mnt"]);
    drop(reader);
    assert!(child.wait().unwrap().success());
    assert_eq!(text(&site.run(&["tail", "bus/q", "--format", "txt"]).stdout), "x\ny\n");

    let mut child = site.foreground();
    site.shell("mkdir mnt/other");
    let _writer = open("mnt/other/append.txt");
    signal(&child, "-KILL");
    child.wait().unwrap();
    site.succeed(&["umount", "mnt"]);
}

/// Each command of the unit as systemd runs it: at a dead mount, and where nothing is mounted.
#[test]
fn the_service_comes_back_after_a_kill() {
    let Some(site) = Site::new() else { return };
    let unit = include_str!("../../contrib/chronfs.service");
    let place = |name: &str| site.path(name).display().to_string();
    let unit = unit.replace("/usr/bin/chron-cli", PROGRAM).replace("${CHRONFS_DIR}", &place("mnt"));
    let unit = unit.replace("${CHRONFS_ROOT}", &place("bus")).replace("-o ${CHRONFS_OPTIONS} ", "");
    let of = |key: &str| unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect::<Vec<_>>();
    let start = || {
        for command in of("ExecStartPre") {
            let is_optional = command.starts_with('-');
            let command = command.trim_start_matches('-');
            let done = Command::new("timeout").args(["20", "bash", "-c", command]).output().unwrap();
            assert!(is_optional || done.status.success(), "{command}: {}", text(&done.stderr));
        }
        let [command] = of("ExecStart")[..] else { panic!("it starts one program: {unit}") };
        let daemon =
            Command::new("bash").args(["-c", &format!("exec {command}")]).stdin(Stdio::null()).spawn().unwrap();
        until("it is mounted", || site.path("mnt/.chronfs/version").exists());
        daemon
    };
    let mut daemon = start();
    signal(&daemon, "-KILL");
    daemon.wait().unwrap();
    until("it is seen to be dead", || fs::metadata(site.path("mnt")).is_err());
    let mut daemon = start();
    site.shell(of("ExecStop")[0]);
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn mount_8_can_call_it() {
    let Some(site) = Site::new() else { return };
    let run = site.helper();
    let output = run(&["bus", "mnt", "-n", "-v", "-o", "rw,noauto,nofail"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert_eq!(site.shell("mkdir mnt/q && ls mnt"), "q\n");
    assert_eq!(code(&run(&["bus", "mnt", "-o", "rw"])), 32, "mounted already");
    site.succeed(&["umount", "mnt"]);
}

#[test]
fn a_path_in_a_mount_is_distinguished_from_a_queue() {
    let Some(site) = Site::new() else { return };
    site.succeed(&["mount", "bus", "mnt"]);
    site.shell("mkdir mnt/q && echo hello > mnt/q/append.txt");
    for (args, expected) in [
        (&["inspect", "mnt/q"][..], 1),
        (&["tail", "mnt/q"], 1),
        (&["append", "mnt/q", "/dev/null"], 1),
        (&["ls", "mnt"], 1),
        (&["doctor", "mnt/q"], 4),
    ] {
        let output = site.command(Path::new(PROGRAM), args).output().unwrap();
        assert_eq!(code(&output), expected, "{args:?}");
        assert!(text(&output.stderr).contains("read its files, or name "), "{args:?}");
    }
    site.succeed(&["umount", "mnt"]);
}

#[test]
fn a_sloppy_mount_8_ignores_unknown_options() {
    let Some(site) = Site::new() else { return };
    let run = site.helper();
    assert_eq!(code(&run(&["bus", "mnt", "-o", "another_systems,ro"])), 1);
    assert_eq!(code(&run(&["bus", "mnt", "-s", "-o", "another_systems,ro"])), 0);
    assert!(site.shell("mkdir mnt/q 2>&1 || true").contains("Read-only"));
    site.succeed(&["umount", "mnt"]);
}

#[test]
fn an_append_follows_one_of_the_shell_at_once() {
    let Some(site) = Site::new() else { return };
    site.succeed(&["mount", "bus", "mnt"]);
    site.shell("mkdir mnt/q");
    let script = format!(
        "for i in $(seq 20); do echo shell > mnt/q/append.txt; echo command | {PROGRAM} append bus/q 2>/dev/null || exit; done"
    );
    site.shell(&script);
    assert_eq!(site.shell("sort mnt/q/messages.txt | uniq -c | tr -s ' '"), " 20 command\n 20 shell\n");
    site.succeed(&["umount", "mnt"]);
}

/// The kernel's list of connections, which a machine may not have mounted.
struct Connections(PathBuf);

impl Connections {
    fn new(site: &Site) -> Self {
        let dir = site.path("connections");
        fs::create_dir(&dir).unwrap();
        let none = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", &dir, "fusectl", none, None).unwrap();
        Self(dir)
    }

    fn abort(&self, mountpoint: &Path) {
        let minor = rustix::fs::minor(fs::metadata(mountpoint).unwrap().dev());
        fs::write(self.0.join(minor.to_string()).join("abort"), "1").unwrap();
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_connection_that_the_kernel_aborts_is_a_failure() {
    let Some(site) = Site::new() else { return };
    if !require(Need::Admin) {
        return;
    }
    let connections = Connections::new(&site);
    let child = site.foreground();
    connections.abort(&site.path("mnt"));
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!((code(&output), said.lines().count()), (1, 1), "{said}");
    assert!(said.contains("mnt: the kernel has aborted the connection"), "{said}");
    assert!(fs::read_dir(site.path("mnt")).is_err(), "no empty directory is taken for the bus");
    site.succeed(&["mount", "bus", "mnt"]);
    site.succeed(&["umount", "mnt"]);
}

#[test]
fn a_forced_unmount_is_none() {
    if !require(Need::Admin) {
        return;
    }
    let Some(site) = Site::new() else { return };
    let child = site.foreground();
    let output = site.command(Path::new("umount"), &["-f", "mnt"]).output().unwrap();
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let output = child.wait_with_output().unwrap();
    assert_eq!((code(&output), text(&output.stderr)), (0, String::new()));
}

/// Like an automounter: any process that accesses the mountpoint waits until it is mounted, except those of one process
/// group. Nothing answers here, so an access by any other process never ends.
#[test]
fn an_automounter_is_not_waited_for() {
    if !require(Need::Admin) || !require(Need::FileSystem("autofs")) {
        return;
    }
    let Some(site) = Site::new() else { return };
    let (requests, kernels_end) = std::io::pipe().unwrap();
    let group = rustix::process::getpgrp().as_raw_nonzero();
    let options = format!("fd={},pgrp={group},minproto=5,maxproto=5,direct", kernels_end.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("test", site.path("mnt"), "autofs", none, Some(options.as_c_str())).unwrap();
    drop(kernels_end);
    // In our process group, which `timeout` would leave.
    let mut child = Command::new(PROGRAM).args(["mount", "bus", "mnt"]).current_dir(site.0.path()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut status = None;
    while status.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
        status = child.try_wait().unwrap();
    }
    let _ = site.run(&["umount", "mnt"]);
    // Processes that wait there are released when it is unmounted.
    let _ = rustix::mount::unmount(site.path("mnt"), rustix::mount::UnmountFlags::DETACH);
    let _ = child.kill();
    let _ = child.wait();
    drop(requests);
    assert!(status.is_some_and(|status| status.success()), "the mount waits for itself: {status:?}");
}

#[test]
fn a_daemon_whose_parent_is_gone_leaves_no_mount() {
    let Some(site) = Site::new() else { return };
    // As started by `mount`, which exited before the daemon reported.
    let (parent, pipe) = std::io::pipe().unwrap();
    drop(parent);
    let mut command = site.command(Path::new(PROGRAM), &["mount", "bus", "mnt"]);
    let output = command.env("CHRONFS_DETACHED", "1").stdout(pipe).output().unwrap();
    assert_ne!(code(&output), 124, "it keeps serving");
    assert_eq!(code(&site.run(&["umount", "mnt"])), 1, "nothing is mounted");
}

#[test]
fn of_two_simultaneous_mounts_one_succeeds() {
    let Some(site) = Site::new() else { return };
    for _ in 0..10 {
        let start =
            || site.command(Path::new(PROGRAM), &["mount", "bus", "mnt"]).stderr(Stdio::piped()).spawn().unwrap();
        let outputs = [start(), start()].map(|child| child.wait_with_output().unwrap());
        let mut codes = [code(&outputs[0]), code(&outputs[1])];
        codes.sort_unstable();
        assert_eq!(codes, [0, 1], "{}{}", text(&outputs[0].stderr), text(&outputs[1].stderr));
        let loser = &outputs[usize::from(code(&outputs[0]) == 0)];
        assert!(text(&loser.stderr).contains("already mounted"), "{}", text(&loser.stderr));
        site.succeed(&["umount", "mnt"]);
        assert_eq!(code(&site.run(&["umount", "mnt"])), 1, "nothing lies below it");
    }
}

#[test]
fn a_foreign_lock_on_the_directory_delays_a_mount_but_does_not_prevent_it() {
    let Some(site) = Site::new() else { return };
    let parent = fs::File::open(site.0.path()).unwrap();
    rustix::fs::flock(&parent, rustix::fs::FlockOperation::LockExclusive).unwrap();
    site.succeed(&["mount", "bus", "mnt"]);
    site.succeed(&["umount", "mnt"]);
}

#[test]
fn options_are_obeyed_or_refused() {
    let Some(site) = Site::new() else { return };
    site.succeed(&["mount", "-o", "ro,noexec,nosymfollow,nosuid,nodev,noatime", "bus", "mnt"]);
    let options = site.shell("findmnt -n -o OPTIONS mnt");
    for word in ["ro", "noexec", "nosymfollow", "nosuid", "nodev"] {
        assert!(options.split(',').any(|option| option == word), "{word} is not in {options}");
    }
    site.succeed(&["umount", "mnt"]);

    for word in ["sync", "dirsync", "mand", "auto_unmount", "context=u:r:t", "rootcontext=\"u:r:t:c1,c2\""] {
        if word.contains('=') && Path::new("/sys/fs/selinux").exists() {
            continue;
        }
        let output = site.run(&["mount", "-o", word, "bus", "mnt"]);
        let said = text(&output.stderr);
        assert!(code(&output) != 0 && said.lines().count() == 1 && said.contains(word), "{said}");
    }
    assert_eq!(code(&site.run(&["umount", "mnt"])), 1, "nothing was mounted");
}

#[test]
fn without_proc_queues_work_and_mounting_says_what_it_takes() {
    let Some(site) = Site::new().filter(|_| require(Need::Admin)) else { return };
    let script = format!(
        "mount -t tmpfs none /proc && seq 3 | {PROGRAM} append bus/q 2>/dev/null && {PROGRAM} ls bus && \
         {PROGRAM} tail -n 1 --format txt bus/q && {PROGRAM} doctor bus && exec {PROGRAM} mount bus mnt"
    );
    let output = site.command(Path::new("unshare"), &["-m", "sh", "-c", &script]).output().unwrap();
    let (printed, said) = (text(&output.stdout), text(&output.stderr));
    assert!(printed.contains("3\n1 queue checked: all well\n"), "{printed}{said}");
    assert_eq!((code(&output), said.lines().count()), (1, 1), "{said}");
    assert!(said.contains("/proc/self/mountinfo: cannot read: No such file or directory"), "{said}");
}

#[test]
fn commands_say_where_the_queue_of_a_mounted_path_is_and_which_mount_writes() {
    let Some(site) = Site::new() else { return };
    site.succeed(&["mount", "bus", "mnt"]);
    site.shell("mkdir mnt/q && echo hello > mnt/q/append.txt");
    let bus = fs::canonicalize(site.path("bus")).unwrap();
    let output = site.run(&["tail", "mnt/q"]);
    let part = format!("read its files, or name {} instead", bus.join("q").display());
    assert!(code(&output) == 1 && text(&output.stderr).contains(&part), "{}", text(&output.stderr));
    let said = site.shell(&format!("exec 5> mnt/q/append.txt; echo b | {PROGRAM} append bus/q 2>&1 || :"));
    let part =
        format!("bus/q: the mount at {} is the queue's writer", site.path("mnt").canonicalize().unwrap().display());
    assert!(said.contains(&part) && !said.contains("stop it"), "{said}");
    site.succeed(&["umount", "mnt"]);
}
