//! Identifying a process, and telling whether it is alive.

use crate::clock;

/// What distinguishes a process from every other one, so that a reused pid is not taken for its predecessor.
pub(in crate::queue) struct Identity {
    pub(in crate::queue) pid: u32,
    pub(in crate::queue) started: String,
    pub(in crate::queue) boot: String,
    pub(in crate::queue) namespace: String,
}

impl Identity {
    /// The namespace's number, from its name; 0 if it is unavailable.
    pub(in crate::queue) fn namespace_number(&self) -> u32 {
        let digits = self.namespace.trim_start_matches("pid:[").trim_end_matches(']');
        digits.parse().unwrap_or(0)
    }

    pub(in crate::queue) fn of_self() -> Self {
        let pid = std::process::id();
        let namespace = std::fs::read_link("/proc/self/ns/pid").map(|l| l.to_string_lossy().into_owned());
        Self { pid, started: start_of(pid), boot: clock::boot_id(), namespace: namespace.unwrap_or_default() }
    }
}

/// Nanoseconds per clock tick as the kernel prints them.
const TICK_NS: i64 = 10_000_000;

/// When a process started, in clock ticks since the machine's boot; empty if that can't be read. The kernel prints it
/// by the boot-time clock of the calling process.
pub(crate) fn start_of(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command name may hold spaces and parentheses: count fields after the last one.
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: Option<i64> = after.split_whitespace().nth(19).and_then(|ticks| ticks.parse().ok());
    let ahead = clock::boot_ahead_ns().div_euclid(TICK_NS);
    ticks.map(|ticks| ticks.saturating_sub(ahead).to_string()).unwrap_or_default()
}

/// Whether a process is alive, judging by its pid and start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Alive,
    Gone,
    /// It is in another pid namespace or of another boot, or may not be examined.
    Unknown,
}

/// Whether the process is alive that a file names as the holder of a lock.
pub(crate) fn life_of(pid: u32, started: u64, of_boot: [u8; 16], pid_namespace: u32) -> Life {
    let me = Identity::of_self();
    if of_boot != boot_id() || pid_namespace != me.namespace_number() || pid_namespace == 0 {
        return Life::Unknown;
    }
    match start_of(pid).parse::<u64>() {
        Ok(found) if found == started => Life::Alive,
        Ok(_) => Life::Gone,
        Err(_) => {
            // Its directory in /proc is missing, or hidden.
            let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
            let is_gone = |pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
            if pid.is_none_or(is_gone) { Life::Gone } else { Life::Unknown }
        }
    }
}

pub(in crate::queue) fn command_of(pid: u32) -> String {
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    command.trim_end().to_owned()
}

/// The identity of this boot, as it is stored beside boot-time stamps; zeros if it is unavailable.
pub(crate) fn boot_id() -> [u8; 16] {
    let hex: Vec<u8> = clock::boot_id().bytes().filter(u8::is_ascii_hexdigit).collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(hex.chunks_exact(2)) {
        let digits = std::str::from_utf8(pair).unwrap_or("");
        *byte = u8::from_str_radix(digits, 16).unwrap_or(0);
    }
    id
}

/// Milliseconds since a heartbeat; None if there was none, or it can't be compared: it is of another boot, or ahead of
/// our clock, and so from a different one.
pub(crate) fn heartbeat_age_ms(stamp_ns: u64, of_boot: [u8; 16]) -> Option<u64> {
    let is_comparable = stamp_ns != 0 && of_boot == boot_id();
    clock::boot_ns().checked_sub(stamp_ns).filter(|_| is_comparable).map(|age_ns| age_ns / 1_000_000)
}

/// What distinguishes this process from every other one for others: start time, pid namespace.
pub(crate) fn own_numbers() -> (u64, u32) {
    let me = Identity::of_self();
    (me.started.parse().unwrap_or(0), me.namespace_number())
}
