//! What tests need of the machine and of their user. Where that is missing, the test is skipped and
//! says so on the real stderr, which the test harness does not capture. Where `CHRONFS_REQUIRE` names the need, a skip is
//! a failure; `all` names whatever can be installed or granted, which a file system that the kernel lacks can't be.
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The variable that names the directory of the programs under test, where it is not the one that cargo has built in.
pub const PROGRAMS: &str = "CHRONFS_TEST_PROGRAMS";

/// The file of a program that cargo has built.
pub fn program(built: &Path) -> PathBuf {
    std::env::var_os(PROGRAMS).map_or_else(|| built.into(), |dir| Path::new(&dir).join(built.file_name().unwrap()))
}

/// Something that not every machine or user has. Its word in `CHRONFS_REQUIRE` is that of [`Need::word`].
#[derive(Clone, Copy)]
pub enum Need {
    /// FUSE mounts, as root or through fusermount3.
    Mount,
    /// FUSE mounts of plain users, through a setuid fusermount3.
    Fusermount,
    /// User number 0.
    Root,
    /// Root that may mount file systems and create namespaces.
    Admin,
    /// File systems of this kind in the kernel; whether the user may mount them is `Admin`.
    FileSystem(&'static str),
    /// Loop devices, and a `mkfs` for this kind of file system.
    Mkfs(&'static str),
    Strace,
    Faketime,
    Tmux,
    Promtool,
    /// A shell that takes `-c`: zsh, fish.
    Shell(&'static str),
    /// A server or tool of at least this version; 0.0 if it does not matter.
    Program(&'static str, (u32, u32)),
    /// A program of another package of the workspace.
    Built(&'static str),
    /// Access control lists: setfacl, and a temporary directory that keeps them.
    Acl,
    /// This many open files in one process.
    Descriptors(u64),
}

impl Need {
    fn word(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Fusermount => "fusermount3",
            Self::Root => "root",
            Self::Admin => "admin",
            Self::Mkfs(_) => "mkfs",
            Self::Strace => "strace",
            Self::Faketime => "faketime",
            Self::Tmux => "tmux",
            Self::Promtool => "promtool",
            Self::FileSystem(name) | Self::Shell(name) | Self::Program(name, _) => name,
            Self::Built(_) => "built",
            Self::Acl => "acl",
            Self::Descriptors(_) => "descriptors",
        }
    }

    /// Whether no package and no permission helps where this is missing.
    fn is_of_kernel(self) -> bool {
        matches!(self, Self::FileSystem(_))
    }

    /// What is missing; None where the need is met.
    fn missing(self) -> Option<String> {
        match self {
            Self::Mount => match File::options().read(true).write(true).open("/dev/fuse") {
                Err(error) => Some(format!("/dev/fuse: {error}")),
                Ok(_) if is_root() => None,
                Ok(_) if !runs("id", &["-un"]) => Some("the user has no name, which fusermount3 asks for".to_owned()),
                Ok(_) => Self::Fusermount.missing(),
            },
            Self::Fusermount => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let found = std::env::split_paths(&path).find_map(|dir| fs::metadata(dir.join("fusermount3")).ok());
                let is_setuid = found.is_some_and(|file| file.mode() & 0o4000 != 0 && file.uid() == 0);
                (!is_setuid).then(|| "there is no setuid fusermount3 in PATH".to_owned())
            }
            Self::Root => (!is_root()).then(|| "the user is not root".to_owned()),
            Self::Admin => {
                let may = is_root() && runs("unshare", &["-m", "-p", "-f", "true"]);
                (!may).then(|| "the user may not mount file systems".to_owned())
            }
            Self::FileSystem(name) => {
                // The kernel loads a module for it if it has one.
                let opened = rustix::mount::fsopen(name, rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
                (opened.err() == Some(rustix::io::Errno::NODEV)).then(|| format!("the kernel has no {name}"))
            }
            Self::Mkfs(kind) if !runs(&format!("mkfs.{kind}"), &["-V"]) => Some(format!("there is no mkfs.{kind}")),
            Self::Mkfs(_) => {
                (!is_root() || !runs("losetup", &["-f"])).then(|| "the user may not use loop devices".to_owned())
            }
            Self::Strace => (!runs("strace", &["-qq", "-o", "/dev/null", "true"]))
                .then(|| "there is no strace, or it may not trace".to_owned()),
            Self::Faketime => (!runs("faketime", &["-f", "+1d", "true"])).then(|| "there is no faketime".to_owned()),
            Self::Tmux => (!runs("tmux", &["-V"])).then(|| "there is no tmux".to_owned()),
            Self::Promtool => (!runs("promtool", &["--version"])).then(|| "there is no promtool".to_owned()),
            Self::Shell(name) => (!runs(name, &["-c", "true"])).then(|| format!("there is no {name}")),
            Self::Program(name, least) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let is_there = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
                match if least == (0, 0) { is_there.then_some(least) } else { version_of(name) } {
                    None => Some(format!("there is no {name} in PATH")),
                    Some(found) if found < least => {
                        Some(format!("{name} is version {}.{}; needed is {}.{}", found.0, found.1, least.0, least.1))
                    }
                    Some(_) => None,
                }
            }
            Self::Built(name) => (!built(name).is_file()).then(|| format!("{} is not built", built(name).display())),
            Self::Acl => {
                let file = tempfile::NamedTempFile::new().unwrap();
                let may = runs("setfacl", &["-m", "u:1:r", &file.path().to_string_lossy()]);
                (!may).then(|| "there is no setfacl, or no file system for it".to_owned())
            }
            Self::Descriptors(count) => {
                let may = runs("prlimit", &[&format!("--nofile={count}"), "true"]);
                (!may).then(|| format!("a process may not open {count} files"))
            }
        }
    }
}

/// Whether a test can go on. If not, reports the skip, or panics where that is not allowed.
#[must_use]
#[track_caller]
pub fn require(need: Need) -> bool {
    match need.missing() {
        None => true,
        Some(reason) => {
            let required = std::env::var("CHRONFS_REQUIRE").unwrap_or_default();
            let is_required = required.split(',').any(|word| match word {
                "all" => !need.is_of_kernel(),
                word => word == need.word(),
            });
            assert!(!is_required, "{reason}, and CHRONFS_REQUIRE={required} allows no skip");
            skip(&reason);
            false
        }
    }
}

/// Reports that the calling test is skipped.
#[track_caller]
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let place = Location::caller();
    // The harness names a test's thread after it, except when tests run one by one.
    let test = match thread.name() {
        Some(name) if name != "main" => format!("{name} ({})", place.file()),
        _ => place.to_string(),
    };
    // On its own line, wherever the harness is in its report.
    let _ = std::io::stderr().write_all(format!("\nskipped: {test}: {reason}\n").as_bytes());
}

/// The file of a program of the workspace, where cargo puts it: this test is in `deps` there.
pub fn built(name: &str) -> PathBuf {
    program(&std::env::current_exe().unwrap().parent().unwrap().with_file_name(name))
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The first two numbers of what a program says of its version; None without the program.
fn version_of(program: &str) -> Option<(u32, u32)> {
    let ask = |option| Command::new(program).arg(option).output().ok().filter(|output| output.status.success());
    let said = ask("--version").or_else(|| ask("-V"))?.stdout;
    let said = String::from_utf8_lossy(&said);
    let mut versions = said.split(|c: char| !c.is_ascii_digit() && c != '.').filter_map(|word| {
        let mut numbers = word.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    Some(versions.next().unwrap_or_default())
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
