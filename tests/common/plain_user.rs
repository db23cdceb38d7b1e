//! Runs the tests of a program again, as an unprivileged user, beside root's run.
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::need::{self, Need, PROGRAMS, require};

/// Nobody: fusermount3 mounts only for users that have a name.
const USER: u32 = 65534;

/// Where other users may not open /dev/fuse, mounts one over it that they may open, in a mount namespace that ends with
/// the tests.
const SCRIPT: &str = r#"
set -e
if [ -n "$1" ]; then
    mount -t tmpfs -o mode=755 tmpfs "$1"
    mknod -m 666 "$1/fuse" c 10 229
    mount --bind "$1/fuse" /dev/fuse
fi
shift
exec setpriv --reuid="$1" --regid="$1" --clear-groups "${@:2}"
"#;

/// As root: every test of the calling program but this one must hold for a plain user too. A plain user's run is that
/// already.
#[cfg(feature = "cli")]
#[track_caller]
pub fn run_tests_again(this_test: &str) {
    run_again(&["--skip", this_test], &[super::program()]);
}

/// As root: the tests that these arguments choose must hold for a plain user too. They use these programs.
#[track_caller]
pub fn run_again(arguments: &[&str], programs: &[PathBuf]) {
    if !need::is_root() || !require(Need::Admin) || !require(Need::Fusermount) || !require(Need::Mount) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let place = |name: &str| scratch.path().join(name);
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(scratch.path(), 0o755);
    std::fs::create_dir(place("home")).unwrap();
    chown(place("home"), Some(USER), Some(USER)).unwrap();
    std::fs::create_dir(place("dev")).unwrap();
    // Others may not have access to where they were built.
    let tests = std::env::current_exe().unwrap();
    for from in programs.iter().chain([&tests]) {
        let to = scratch.path().join(from.file_name().unwrap());
        std::fs::copy(from, &to).unwrap();
        mode(&to, 0o755);
    }
    let is_open = std::fs::metadata("/dev/fuse").unwrap().mode() & 0o006 == 0o006;
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "300", "unshare", "-m", "bash", "-c", SCRIPT, "bash"]);
    command.arg(if is_open { "".into() } else { place("dev") }).arg(USER.to_string());
    command.arg(scratch.path().join(tests.file_name().unwrap())).args(arguments);
    command.env(PROGRAMS, scratch.path()).env("HOME", place("home")).env("TMPDIR", place("home"));
    command.env("CHRONFS_REQUIRE", "mount").current_dir(place("home")).stdin(Stdio::null());
    let output = command.output().unwrap();
    let printed = super::text(&output.stdout);
    assert!(output.status.success(), "as user {USER}:\n{printed}{}", super::text(&output.stderr));
    assert!(!printed.contains("\nrunning 0 tests"), "{printed}");
}
