//! One mount from beginning to end: mounting, noticing its end, unmounting.
//!
//! The mount ends when the kernel releases it (`destroy`). It does so once it is unmounted and no file is open any
//! more, so unmounting first ends all waiting reads: in [`Session::unmount`], and in the thread that watches the mount
//! table for unmounts by other processes (in all namespaces: a copy of the mount keeps working). Unmounting is always
//! lazy, since a busy mount would otherwise stay; files still open after a grace period are cut off.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fuser::{Config, InitFlags, KernelConfig, MountOption, SessionACL};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::fs::daemon_log::Asked;
use crate::fs::kind::{CHRONFS, Kind, unmount};
use crate::fs::mount::MountOptions;
use crate::fs::tree::Tree;
use crate::fs::waiting::parked::Parked;
use crate::fs::{lock, mountinfo, spawn};

use crate::fs::kernel::adapter::{Adapter, MAX_WRITE};
use crate::fs::kernel::device::Device;
use crate::fs::kernel::passthrough::Passthrough;
use crate::fs::kernel::serve::Server;

/// How long files may stay open after [`Session::unmount`].
const GRACE: Duration = Duration::from_secs(2);
/// `umount -f` cuts the connection first and unmounts then: how long that may take.
const FORCED_UNMOUNT: Duration = Duration::from_secs(1);
const FORCED_UNMOUNT_STEP: Duration = Duration::from_millis(10);

/// How long the kernel is given to report what it has forgotten.
const FORGET_PAUSE: Duration = Duration::from_millis(20);
/// How often to look for copies of the mount in other namespaces, once ours is gone.
const COPIES_INTERVAL: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// A mount that is being served.
#[derive(Clone)]
pub(crate) struct Session {
    life: Arc<Life>,
}

struct Life {
    tree: Arc<Tree>,
    parked: Arc<Parked>,
    mountpoint: PathBuf,
    /// `major:minor` of the mount: distinguishes it from another one at the same place.
    device: OnceLock<String>,
    stage: Mutex<Stage>,
    changed: Condvar,
    /// Wakes the thread that watches the mount table when it is to end.
    over: OwnedFd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// Unmounting was requested; files still open are served until then.
    Leaving(Instant),
    Ended,
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Unmounted,
    /// The kernel has cut the connection; the mount is still there, dead.
    Aborted,
}

impl Session {
    /// The largest read or write that the kernel sends in one request, in bytes.
    pub(crate) fn max_chunk() -> usize {
        let limit = std::fs::read_to_string("/proc/sys/fs/fuse/max_pages_limit");
        let pages = limit.ok().and_then(|text| text.trim().parse::<usize>().ok()).unwrap_or(256);
        (MAX_WRITE as usize).min(pages.saturating_mul(4096))
    }

    /// Mounts at an absolute path and serves. When this returns the mount is usable: the kernel's INIT request has been
    /// answered.
    pub(crate) fn start(tree: Tree, mountpoint: &Path, source: &str, options: &MountOptions) -> io::Result<Self> {
        let tree = Arc::new(tree);
        let life = Arc::new(Life {
            tree: Arc::clone(&tree),
            parked: Arc::default(),
            mountpoint: mountpoint.to_path_buf(),
            device: OnceLock::new(),
            stage: Mutex::new(Stage::Serving),
            changed: Condvar::new(),
            over: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
        });
        let ended = {
            let life = Arc::clone(&life);
            Box::new(move || life.end())
        };
        let config = config(source, options);
        let passthrough = Arc::<Passthrough>::default();
        let handshake = Handshake { passthrough: Arc::clone(&passthrough) };
        let session = fuser::Session::new(handshake, mountpoint, &config)?;
        // Dropping `fuser`'s handle would unmount by path whatever is mounted there by then. Its device descriptor is
        // closed when the process ends.
        let session = ManuallyDrop::new(session);
        let refused = {
            let tree = Arc::clone(&tree);
            Box::new(move |asked: &Asked, errno| tree.refused(asked, errno))
        };
        let device = Arc::new(Device::new(session.as_fd().try_clone_to_owned()?, refused));
        let (parked, owner) = (Arc::clone(&life.parked), rustix::process::geteuid().as_raw());
        let adapter = Adapter { tree, parked, passthrough, acl: config.acl, owner, ended };
        Server::start(&device, adapter, MAX_WRITE as usize, options.threads)?;
        let forgetting = Arc::clone(&life.tree);
        spawn("chronfs-forget", 256 << 10, move || forget_names(&forgetting, &device))?;
        if let Some(mounted) = mountinfo::at(mountpoint)? {
            let _ = life.device.set(mounted.device);
        }
        let watching = Arc::clone(&life);
        spawn("chronfs-mounts", 256 << 10, move || watching.watch_mount_table())?;
        Ok(Self { life })
    }

    /// Ends all waiting reads and unmounts.
    pub(crate) fn unmount(&self) -> io::Result<()> {
        let life = &self.life;
        life.close();
        {
            let mut stage = lock(&life.stage);
            if *stage == Stage::Serving {
                *stage = Stage::Leaving(Instant::now() + GRACE);
            }
        }
        life.changed.notify_all();
        if life.is_mounted()? { unmount(&life.mountpoint) } else { Ok(()) }
    }

    /// Returns when the mount has ended, whoever unmounted it, or at the end of the grace period.
    pub(crate) fn wait(&self) -> Ended {
        self.wait_for_end();
        self.life.tree.finish();
        if self.life.is_left_dead() { Ended::Aborted } else { Ended::Unmounted }
    }

    fn wait_for_end(&self) {
        let life = &self.life;
        let mut stage = lock(&life.stage);
        loop {
            match *stage {
                Stage::Ended => return,
                Stage::Serving => stage = life.changed.wait(stage).unwrap_or_else(PoisonError::into_inner),
                Stage::Leaving(until) => {
                    let Some(rest) = until.checked_duration_since(Instant::now()) else { break };
                    stage = life.changed.wait_timeout(stage, rest).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        drop(stage);
        life.abort();
    }

    pub(crate) fn mountpoint(&self) -> &Path {
        &self.life.mountpoint
    }

    pub(crate) fn has_ended(&self) -> bool {
        *lock(&self.life.stage) == Stage::Ended
    }
}

impl Life {
    /// Ends all waiting.
    fn close(&self) {
        self.tree.close();
        self.parked.close();
    }

    fn end(&self) {
        self.close();
        *lock(&self.stage) = Stage::Ended;
        self.changed.notify_all();
        // An eventfd takes eight bytes; if this fails, the thread ends with the process.
        let _ = rustix::io::write(&self.over, &1_u64.to_ne_bytes());
    }

    fn is_mounted(&self) -> io::Result<bool> {
        let Some(device) = self.device.get() else { return Ok(true) };
        Ok(mountinfo::at(&self.mountpoint)?.is_some_and(|mounted| mounted.device == *device))
    }

    /// Whether the mount is still in the mount table after its end.
    fn is_left_dead(&self) -> bool {
        let until = Instant::now() + FORCED_UNMOUNT;
        while self.device.get().is_some() && matches!(self.is_mounted(), Ok(true)) {
            if Instant::now() >= until {
                return true;
            }
            std::thread::sleep(FORCED_UNMOUNT_STEP);
        }
        false
    }

    /// Ends waiting reads when another process unmounts: they hold files open, so the mount would never end.
    fn watch_mount_table(&self) {
        let Ok(table) = std::fs::File::open("/proc/self/mountinfo") else { return };
        loop {
            let mut events =
                [PollFd::new(&table, PollFlags::PRI | PollFlags::ERR), PollFd::new(&self.over, PollFlags::IN)];
            match rustix::event::poll(&mut events, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) if events[1].revents().contains(PollFlags::IN) => return,
                Ok(_) => {}
            }
            if matches!(self.is_mounted(), Ok(false)) {
                self.wait_for_copies();
                self.close();
                return;
            }
        }
    }

    /// Returns when no namespace has the mount any more: one that was created earlier may still use it.
    fn wait_for_copies(&self) {
        let Some(device) = self.device.get() else { return };
        while mountinfo::is_left_anywhere(device) {
            let mut over = [PollFd::new(&self.over, PollFlags::IN)];
            if rustix::event::poll(&mut over, Some(&COPIES_INTERVAL)).is_ok_and(|ready| ready > 0) {
                return;
            }
        }
    }

    /// Cuts off files that are still open, where the kernel permits it; the end of the process does so too.
    fn abort(&self) {
        if let Some((_, minor)) = self.device.get().and_then(|device| device.split_once(':')) {
            let _ = std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
        }
    }
}

/// Has the kernel forget names, so that the queues that they hold open can be closed.
fn forget_names(tree: &Tree, device: &Device) {
    while let Some(names) = tree.superfluous_names() {
        for (parent, name) in names {
            device.forget_name(parent.0, name.as_bytes());
        }
        // The kernel reports later what it has forgotten.
        std::thread::sleep(FORGET_PAUSE);
        tree.names_were_forgotten();
    }
}

/// Answers the kernel's INIT request for `fuser`.
struct Handshake {
    passthrough: Arc<Passthrough>,
}

impl fuser::Filesystem for Handshake {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not requested: asynchronous direct reads (they would reorder streams), remote locks. Listings include
        // attributes only where the kernel expects them to be used: always would be slow, and fill its memory.
        // Capabilities that a kernel lacks are not fatal.
        let wanted =
            [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_DO_READDIRPLUS, InitFlags::FUSE_READDIRPLUS_AUTO];
        for capability in wanted {
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_write(MAX_WRITE);
        self.passthrough.negotiate(config);
        Ok(())
    }
}

impl Kind {
    /// Options that every mount has. `source`: what the mount table says that it shows. For the crates of this workspace:
    /// the type is that of `fuser`, in the version that this one uses.
    pub fn mount_options(&self, source: &str) -> Vec<MountOption> {
        vec![
            // fusermount3 would split or unescape at a comma or backslash.
            MountOption::FSName(source.replace([',', '\\'], "_")),
            // As a custom option: the kernel reads it, but `fuser` does not pass its own Subtype to the kernel.
            MountOption::CUSTOM(format!("subtype={}", self.subtype)),
            MountOption::DefaultPermissions,
            MountOption::NoSuid,
            MountOption::NoDev,
        ]
    }
}

fn config(source: &str, options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = CHRONFS.mount_options(source);
    config.mount_options.extend(options.labels.iter().cloned().map(MountOption::CUSTOM));
    if options.read_only {
        config.mount_options.push(MountOption::RO);
    }
    if options.noexec {
        config.mount_options.push(MountOption::NoExec);
    }
    config.acl = if options.allow_other {
        SessionACL::All
    } else if options.allow_root {
        SessionACL::RootAndOwner
    } else {
        SessionACL::Owner
    };
    config
}
