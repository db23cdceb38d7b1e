//! Which signals are pending for a thread, from /proc.

use crate::fs::callers::Status;

/// Signals that stop a process, unless it catches them (all but the first can be).
const STOPS: u64 = bit(libc::SIGSTOP) | bit(libc::SIGTSTP) | bit(libc::SIGTTIN) | bit(libc::SIGTTOU);

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Pending signals of a thread, and whether it is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct Signals {
    /// Those that would be delivered.
    due: u64,
    caught: u64,
    is_traced: bool,
}

/// The signals of a thread; None where they are not visible from here: it is gone, or in a foreign pid namespace (0),
/// or hidden by /proc.
pub(in crate::fs) fn of(thread: u32) -> Option<Signals> {
    Signals::parse(&Status::of(thread)?)
}

impl Signals {
    fn parse(status: &Status) -> Option<Self> {
        let set = |name| u64::from_str_radix(status.field(name)?, 16).ok();
        let pending = set("SigPnd")? | set("ShdPnd")?;
        let due = pending & !set("SigBlk")? & !set("SigIgn")?;
        Some(Self { due, caught: set("SigCgt")?, is_traced: status.field("TracerPid")? != "0" })
    }

    /// Whether they end the process.
    pub(in crate::fs) fn is_fatal(self) -> bool {
        self.due & bit(libc::SIGKILL) != 0
    }

    /// Whether there are any.
    pub(in crate::fs) fn is_any(self) -> bool {
        self.due != 0
    }

    /// Whether there are any, and they only stop the process, without a debugger being involved.
    pub(in crate::fs) fn is_stop(self) -> bool {
        let stops = STOPS & (!self.caught | bit(libc::SIGSTOP));
        !self.is_traced && self.due != 0 && self.due & !stops == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(pending: u64, shared: u64, blocked: u64, ignored: u64, caught: u64, tracer: u32) -> Signals {
        let text = format!(
            "Name:\tc\u{e9}t\nTracerPid:\t{tracer}\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        );
        Signals::parse(&Status::parse(text.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn only_signals_that_would_be_delivered_count() {
        assert!(!signals(0, 0, 0, 0, 0, 0).is_any());
        assert!(signals(0x100, 0, 0, 0, 0, 0).is_fatal());
        assert!(signals(0, 0x2, 0, 0, 0, 0).is_any());
        assert!(!signals(0, 0x2, 0x2, 0, 0, 0).is_any());
        assert!(!signals(0, 0x1000, 0, 0x1000, 0, 0).is_any());
        assert!(Status::parse(b"nothing of the kind").is_none());
        assert!(Signals::parse(&Status::parse(b"Name:\tx\nnothing of the kind\n").unwrap()).is_none());
    }

    #[test]
    fn a_stop_is_a_stop_unless_it_is_caught_or_a_debuggers() {
        let (stop, terminal_stop, interrupt) = (bit(libc::SIGSTOP), bit(libc::SIGTSTP), bit(libc::SIGINT));
        assert!(signals(0, stop, 0, 0, 0, 0).is_stop());
        assert!(signals(0, terminal_stop, 0, 0, 0, 0).is_stop());
        assert!(!signals(0, terminal_stop, 0, 0, terminal_stop, 0).is_stop());
        assert!(!signals(0, stop | interrupt, 0, 0, 0, 0).is_stop());
        assert!(!signals(stop, 0, 0, 0, 0, 7).is_stop());
        assert!(!signals(0, 0, 0, 0, 0, 0).is_stop());
    }
}
