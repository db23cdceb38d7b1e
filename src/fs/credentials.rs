//! The caller of a request, and acting with its rights: the kernel then decides as if the caller had made the system
//! call itself, with ACLs, sticky bits, quotas, reserved blocks, inherited groups and umasks.
//!
//! This applies to root's mount. In an ordinary user's mount everything is done as that user, and the modes of the
//! files decide what others may do.
//!
//! Invariants: a thread acts as a caller only inside of [`Caller::act`], and has its own rights again when that returns
//! or panics; if they can't be restored, the process ends. Threads started meanwhile keep the caller's rights: only
//! those that belong to what the caller has opened may be started. Only the ids that decide access to files change, so
//! that a caller has no more power over the thread (signals, priorities) than over any other thread of root's.

use std::cell::{Cell, OnceCell};
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Gid, Mode, Stat};
use rustix::process::Pid;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::queue;

use crate::fs::callers::Status;
use crate::fs::errno::{Errno, Result};

/// The umask assumed for callers whose own is not visible.
const USUAL_UMASK: u32 = 0o022;
/// Permission bits of one digit of a mode.
pub(crate) const READ: u32 = 4;
pub(crate) const WRITE: u32 = 2;
pub(crate) const SEARCH: u32 = 1;

/// The process that asks for an operation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The calling thread; 0 if it is not visible from here.
    pub(crate) pid: u32,
    /// Supplementary groups; none where they are not visible.
    groups: Arc<[u32]>,
    umask: u32,
    /// For root: its capabilities over files; None if it has all of the daemon's. Processes in containers often have
    /// fewer.
    power: Option<CapabilitySet>,
}

/// The capabilities that give root its power over files.
const POWER: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SYS_RESOURCE);

impl Caller {
    /// The caller of a request that has not been answered yet: until then the kernel keeps it waiting, so its thread id
    /// can't be reused. `needs_umask`: whether a file may be created for it though the request carries no umask.
    pub(crate) fn of_request(uid: u32, gid: u32, pid: u32, needs_umask: bool) -> Self {
        let pid = visible(pid);
        let power = if uid == 0 { power_of(pid) } else { None };
        let mut caller = Self { uid, gid, pid, groups: Arc::from([]), umask: USUAL_UMASK, power };
        let is_trusted = power.is_none() && (uid == 0 || uid == rustix::process::geteuid().as_raw());
        if pid != 0
            && (needs_umask || !is_trusted)
            && let Some(status) = Status::of(pid)
        {
            caller.read_status(&status);
        }
        caller
    }

    #[cfg(test)]
    pub(crate) fn with_pid(self, pid: u32) -> Self {
        Self { pid, ..self }
    }

    #[cfg(test)]
    pub(crate) fn root() -> Self {
        Self { uid: 0, gid: 0, pid: 1, groups: Arc::from([]), umask: USUAL_UMASK, power: None }
    }

    fn read_status(&mut self, status: &Status) {
        let numbers = |name: &str, radix| {
            let words = status.field(name).unwrap_or_default().split_whitespace();
            words.filter_map(|word| u32::from_str_radix(word, radix).ok()).collect::<Vec<_>>()
        };
        // Real, effective, saved, and file system id; the request carries the last.
        if (numbers("Uid", 10).get(3), numbers("Gid", 10).get(3)) == (Some(&self.uid), Some(&self.gid)) {
            self.groups = numbers("Groups", 10).into();
        }
        if let [umask] = numbers("Umask", 8)[..] {
            self.umask = umask & 0o777;
        }
    }

    /// For a mode that has had the umask applied already.
    pub(crate) fn with_umask(self, umask: u32) -> Self {
        Self { umask: umask & 0o777, ..self }
    }

    /// Runs something with the caller's rights. It must not start threads other than those that belong to what the
    /// caller opens.
    ///
    /// # Errors
    /// EPERM where root may not change its ids (a container without CAP_SETUID and CAP_SETGID).
    pub(crate) fn act<T>(&self, run: impl FnOnce() -> T) -> Result<T> {
        let _umask = Umask::set(self.umask);
        let _acting = if self.is_other() { Some(Acting::begin(self)?) } else { None };
        Ok(run())
    }

    /// Whether root's daemon has to act for another user.
    pub(crate) fn is_other(&self) -> bool {
        (self.uid != 0 || self.power.is_some()) && rustix::process::geteuid().is_root()
    }

    /// Whether an ordinary user's daemon serves another user.
    pub(crate) fn is_stranger(&self) -> bool {
        let own = rustix::process::geteuid();
        !own.is_root() && self.uid != 0 && self.uid != own.as_raw()
    }

    /// EACCES unless the caller has this access to an open file. Where we act as the caller the kernel has checked
    /// already; otherwise only the modes can be checked.
    pub(crate) fn check(&self, file: impl AsFd, bits: u32) -> Result<()> {
        let is_allowed = !self.is_stranger() || self.may(&rustix::fs::fstat(file)?, bits);
        if is_allowed { Ok(()) } else { Err(Errno::EACCES) }
    }

    /// Whether a mode grants all of these bits.
    pub(crate) fn may(&self, stat: &Stat, bits: u32) -> bool {
        let shift = if self.uid == stat.st_uid {
            6
        } else if self.gid == stat.st_gid || self.groups.contains(&stat.st_gid) {
            3
        } else {
            0
        };
        self.uid == 0 || (stat.st_mode >> shift) & bits == bits
    }
}

/// A request's thread; 0 if it is not visible from here: in another namespace its number may belong to a different
/// process.
pub(crate) fn visible(thread: u32) -> u32 {
    if shows_our_processes() { thread } else { 0 }
}

/// Whether /proc belongs to the pid namespace whose numbers the kernel reports to us.
fn shows_our_processes() -> bool {
    static SHOWS: OnceLock<bool> = OnceLock::new();
    *SHOWS.get_or_init(|| {
        std::fs::read_link("/proc/self").is_ok_and(|own| own.as_os_str() == std::process::id().to_string().as_str())
    })
}

/// The capabilities over files of a root process that has fewer than the daemon; None if it has as many, or is not
/// visible.
fn power_of(pid: u32) -> Option<CapabilitySet> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let power = rustix::thread::capabilities(Some(pid)).ok()?.effective & POWER;
    let ours = own().ok()?.capabilities.effective & POWER;
    // In its own user namespace it may have all of them, but they do not apply here.
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    if namespace("self") != namespace(&pid.to_string()) {
        return Some(CapabilitySet::empty());
    }
    Some(power).filter(|power| !power.contains(ours))
}

/// This thread's umask while it acts for a caller.
struct Umask(Option<Mode>);

thread_local! {
    /// Whether this thread has a umask of its own.
    static HAS_UMASK: OnceCell<bool> = const { OnceCell::new() };
    /// Whether this thread acts as a caller.
    static IS_ACTING: Cell<bool> = const { Cell::new(false) };
}

impl Umask {
    fn set(umask: u32) -> Self {
        // Where that is forbidden, the daemon's own umask applies.
        let is_own = HAS_UMASK.with(|has| *has.get_or_init(|| queue::leave_shared_umask().is_ok()));
        Self(is_own.then(|| rustix::process::umask(Mode::from_raw_mode(umask))))
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            rustix::process::umask(before);
        }
    }
}

/// The daemon's own ids and capabilities.
struct Own {
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    capabilities: CapabilitySets,
}

fn own() -> std::io::Result<&'static Own> {
    static OWN: OnceLock<Own> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own);
    }
    let own = Own {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: rustix::process::getgroups()?,
        capabilities: rustix::thread::capabilities(None)?,
    };
    Ok(OWN.get_or_init(|| own))
}

/// This thread acts as another user until this is dropped.
struct Acting(&'static Own);

impl Acting {
    fn begin(caller: &Caller) -> std::io::Result<Self> {
        if IS_ACTING.get() {
            // Acting does not nest: the end of the inner one would end the outer one too.
            return Err(std::io::ErrorKind::PermissionDenied.into());
        }
        let own = own()?;
        let groups = caller.groups.iter().filter(|gid| **gid != u32::MAX);
        let groups: Vec<Gid> = groups.map(|gid| Gid::from_raw(*gid)).collect();
        IS_ACTING.set(true);
        // From here on dropped, and so undone, whatever fails.
        let acting = Self(own);
        rustix::thread::set_thread_groups(&groups)?;
        queue::set_file_ids(caller.uid, caller.gid)?;
        // The remaining capabilities would allow taking reserved blocks and exceeding quotas, among others.
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: caller.power.unwrap_or(CapabilitySet::empty()) & own.capabilities.effective,
                ..own.capabilities
            },
        )?;
        Ok(acting)
    }

    fn end(&self) -> std::io::Result<()> {
        let Self(own) = self;
        rustix::thread::set_capabilities(None, own.capabilities)?;
        queue::set_file_ids(own.uid, own.gid)?;
        rustix::thread::set_thread_groups(&own.groups)?;
        // Setting the ids changes the capabilities too.
        Ok(rustix::thread::set_capabilities(None, own.capabilities)?)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::error!(target: "chronfs", "cannot restore a thread's own rights: {error}");
            std::process::abort();
        }
        IS_ACTING.set(false);
    }
}

/// Whether root may act for others at all.
pub(crate) fn can_act() -> bool {
    let nobody = Caller { uid: 65534, gid: 65534, pid: 0, groups: Arc::from([]), umask: USUAL_UMASK, power: None };
    // On a separate thread: it stops sharing its umask and working directory with the others.
    let try_it = || std::thread::scope(|scope| scope.spawn(|| nobody.act(|| ()).is_ok()).join().unwrap_or(false));
    !rustix::process::geteuid().is_root() || try_it()
}
