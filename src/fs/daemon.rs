//! The mount as a daemon: what `chron-cli mount` runs, in the foreground or detached.
//!
//! Detaching starts this program again with the same arguments. The child mounts and reports through its standard
//! output, which is a pipe, that the mount is usable, or why not; then it detaches from the terminal. So the parent's
//! success means a usable mount, and no process ever forks while it has threads.
//!
//! Until the mount exists the child stays in the process group that it was started in: an automounter lets only its own
//! group past the mountpoint; all other processes wait there for the mount.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::{panic, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::fs::errno::Errno;
use crate::fs::kind::{CHRONFS, Kind, no_mount_table};
use crate::fs::mount::{Mount, MountError, MountOptions};
use crate::fs::mountinfo;
use crate::printable::printable;

/// What the child prints when the mount is usable.
const READY: &str = "ready";
/// Target of the log lines.
const LOG: &str = "chronfs";
/// Maximum length of a panic's text in the log, in characters.
const MAX_PANIC: usize = 300;

/// Mounts, and serves until unmounted or told to stop by SIGINT, SIGTERM or SIGHUP. In the foreground it returns
/// then; otherwise it returns as soon as a detached process has made the mount usable.
///
/// Detaching runs this program again with the arguments of this process, which must call this function again.
///
/// # Errors
/// [`MountError`], with the path and the reason.
pub fn run(root: &Path, mountpoint: &Path, options: &MountOptions, foreground: bool) -> Result<(), MountError> {
    if is_detached() {
        let mut is_usable = false;
        let result = serve(root, mountpoint, options, || {
            leave_terminal(None)?;
            is_usable = true;
            Ok(())
        });
        return match result {
            Err(error) if is_usable => {
                log::error!(target: LOG, "{error}");
                Err(error)
            }
            Err(error) => {
                // The parent prints it. If the parent has exited, the error is dropped.
                let _ = io::stdout().write_all(encode(&error).as_bytes());
                Ok(())
            }
            Ok(()) => Ok(()),
        };
    }
    if foreground {
        return serve(root, mountpoint, options, || Ok(()));
    }
    // Without /proc it could not be started.
    mountinfo::holding(Path::new("/")).map_err(|error| no_mount_table(&error))?;
    let ended = CHRONFS.start_detached();
    match ended.map_err(|error| MountError::System(format!("cannot start the daemon: {error}")))? {
        None => Ok(()),
        Some(Ended { said, status }) => Err(decode(&said)
            .unwrap_or_else(|| MountError::Failed(format!("the daemon ended before it was ready: {status}")))),
    }
}

/// Whether this process is the detached one: nobody sees what it prints.
pub fn is_detached() -> bool {
    CHRONFS.is_detached()
}

/// A detached process that ended before its mount was usable.
#[derive(Debug)]
pub struct Ended {
    /// What it printed.
    pub said: String,
    /// How it ended.
    pub status: ExitStatus,
}

impl Kind {
    /// Whether this process is one that [`Kind::start_detached`] has started.
    pub fn is_detached(self) -> bool {
        env::var_os(self.detached).is_some()
    }

    /// Runs this program again with the arguments of this process, in the background. Returns None when that has called
    /// [`leave_terminal`].
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start_detached(self) -> io::Result<Option<Ended>> {
        let mut arguments = env::args_os();
        // By its path, whose name `ps` and `pgrep` then show; by the link if the file was replaced meanwhile.
        let program = env::current_exe().ok().filter(|path| path.exists()).unwrap_or_else(|| "/proc/self/exe".into());
        let mut command = Command::new(program);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        command.args(arguments).env(self.detached, "1").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut said = String::new();
        if let Some(mut pipe) = child.stdout.take() {
            pipe.read_to_string(&mut said)?;
        }
        if said == READY {
            return Ok(None);
        }
        Ok(Some(Ended { said, status: child.wait()? }))
    }
}

/// Logs a panic with its location, and records it as the reason for the error that the caller gets.
pub(super) fn log_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        let text: String = printable(&panic.to_string().replacen('\n', " ", 1)).chars().take(MAX_PANIC).collect();
        log::error!(target: LOG, "{name}: {text}");
        if !name.starts_with(LOG) {
            before(panic);
        }
        let _ = Errno::EIO.because(text);
    }));
}

fn serve(
    root: &Path,
    mountpoint: &Path,
    options: &MountOptions,
    usable: impl FnOnce() -> io::Result<()>,
) -> Result<(), MountError> {
    let system = |error: io::Error| MountError::System(format!("cannot start the daemon: {error}"));
    log_panics();
    // Before the mount, so that a signal in between is not lost.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(system)?;
    // Exceeding the file size limit must fail the write, not kill the daemon: any handler achieves that.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(system)?;
    let mount = Mount::start(root, mountpoint, options)?;
    let unmounter = mount.unmounter();
    thread::Builder::new()
        .name("chronfs-stop".into())
        .spawn(move || {
            for _ in signals.forever() {
                notify("STOPPING=1");
                if let Err(error) = unmounter.unmount() {
                    log::error!(target: LOG, "{error}");
                }
            }
        })
        .map_err(system)?;
    env::set_current_dir("/").map_err(system)?;
    notify(&format!("READY=1\nMAINPID={}", std::process::id()));
    usable().map_err(system)?;
    mount.run_until_unmounted()
}

/// In a process that [`Kind::start_detached`] has started: reports that the mount is usable, and leaves the terminal. What
/// goes to stderr from then on goes to `log`, if there is one.
///
/// # Errors
/// If the process that started this one is gone, or /dev/null can't be opened.
pub fn leave_terminal(log: Option<&File>) -> io::Result<()> {
    // Fails only for a process group leader, which a child is not.
    let _ = rustix::process::setsid();
    let mut stdout = io::stdout();
    stdout.write_all(READY.as_bytes())?;
    stdout.flush()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stderr(log.unwrap_or(&null))?;
    // Last: the parent continues when the pipe is closed.
    rustix::stdio::dup2_stdout(&null)?;
    Ok(())
}

/// An error as sent through the pipe: its kind, then its text.
fn encode(error: &MountError) -> String {
    let kind = match error {
        MountError::Usage(_) => "usage",
        MountError::System(_) => "system",
        MountError::Failed(_) => "failed",
    };
    format!("{kind} {error}")
}

fn decode(said: &str) -> Option<MountError> {
    let (kind, text) = said.split_once(' ')?;
    let text = text.to_owned();
    match kind {
        "usage" => Some(MountError::Usage(text)),
        "system" => Some(MountError::System(text)),
        "failed" => Some(MountError::Failed(text)),
        _ => None,
    }
}

/// Reports our state to the service manager, if there is one. Best effort.
fn notify(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(state.as_bytes(), &address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_survive_the_pipe() {
        for error in [MountError::Usage("a b".into()), MountError::System("c".into()), MountError::Failed("d".into())] {
            let back = decode(&encode(&error)).unwrap();
            assert_eq!(format!("{back:?}"), format!("{error:?}"));
        }
        assert!(decode("").is_none() && decode("thread panicked").is_none());
    }
}
