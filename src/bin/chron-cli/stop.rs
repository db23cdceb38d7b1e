//! Orderly exit on SIGINT, SIGTERM and SIGHUP: the command finishes what it holds, then ends by that same signal, so
//! that shells and scripts see that it was stopped.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use crate::failure::Failure;

/// Watches for signals that stop the command.
pub(crate) struct Stop {
    /// Each becomes readable when its signal arrives.
    signals: Vec<(i32, UnixStream)>,
}

impl Stop {
    /// From now on these signals no longer end the process by themselves. Those that are ignored (`nohup`, background
    /// jobs of a script) stay ignored.
    pub(crate) fn watch() -> Result<Self, Failure> {
        let failed = |e| Failure::new(format!("cannot wait for signals: {e}"));
        let mut signals = Vec::new();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if !is_ignored(signal) {
                let (ours, theirs) = UnixStream::pair().map_err(failed)?;
                pipe::register(signal, theirs).map_err(failed)?;
                signals.push((signal, ours));
            }
        }
        Ok(Self { signals })
    }

    /// The signal that has arrived, if any.
    fn caught(&self) -> Option<i32> {
        let mut polled: Vec<_> = self.signals.iter().map(|(_, pipe)| PollFd::new(pipe, PollFlags::IN)).collect();
        let _ = poll(&mut polled, Some(&rustix::event::Timespec::default()));
        let came = polled.iter().position(|polled| polled.revents().contains(PollFlags::IN))?;
        Some(self.signals[came].0)
    }

    /// Fails if a signal has arrived: to be called between the steps of long work.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        self.caught().map_or(Ok(()), |signal| Err(Failure::Stopped(signal)))
    }

    /// Waits until something can be read, or a signal arrives.
    fn wait_for(&self, file: &File) -> io::Result<()> {
        let mut polled = vec![PollFd::new(file, PollFlags::IN)];
        polled.extend(self.signals.iter().map(|(_, pipe)| PollFd::new(pipe, PollFlags::IN)));
        loop {
            match poll(&mut polled, None) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.map(drop).map_err(Into::into),
            }
        }
    }
}

/// Whether a signal was ignored when this process was started. Assumed not, where /proc can't be read.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// A file whose reads fail once the command is to stop.
pub(crate) struct Stoppable<'a> {
    pub(crate) file: File,
    pub(crate) stop: &'a Stop,
}

impl<'a> Stoppable<'a> {
    pub(crate) fn stdin(stop: &'a Stop) -> io::Result<Self> {
        Ok(Self { file: File::from(io::stdin().as_fd().try_clone_to_owned()?), stop })
    }
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.stop.wait_for(&self.file)?;
            if self.stop.caught().is_some() {
                // Not Interrupted: callers would try again.
                return Err(io::Error::other("stopped"));
            }
            match self.file.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}
