//! A file whose handlers panic: only its callers get an error.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use crate::fs::attr::{Attr, READ};
use crate::fs::errno::Result;
use crate::fs::kernel::need::{Need, require};
use crate::fs::mount::{Mount, MountOptions};
use crate::fs::site::{Access, Caller, File, Site};
use crate::fs::tree::handles::{Handle, Progress};

struct Panics(Site);

/// Row constructor.
pub(in crate::fs) fn file(site: &Site) -> Result<Arc<dyn File>> {
    Ok(Arc::new(Panics(site.clone())))
}

impl File for Panics {
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::file(&self.0.directory.stat_now()?, READ | 0o200))
    }

    fn open(&self, access: Access, _caller: &Caller) -> Result<Box<dyn Handle>> {
        assert!(access != Access::ReadWrite, "in open, on purpose");
        Ok(Box::new(PanicHandle))
    }
}

struct PanicHandle;

impl Handle for PanicHandle {
    fn read(&self, offset: u64, _size: usize, _out: &mut Vec<u8>) -> Result<Progress> {
        panic!("in read at {offset}, on purpose")
    }

    fn write(&self, _data: &[u8]) -> Result<usize> {
        panic!("in write, on purpose")
    }
}

fn sh(dir: &Path, script: &str) -> Output {
    Command::new("timeout").args(["10", "bash", "-c", script]).current_dir(dir).output().unwrap()
}

#[test]
fn a_panic_costs_its_caller_an_error_and_nobody_else_anything() {
    if !require(Need::Root) || !require(Need::Mount) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [root, mountpoint] = ["root", "mnt"].map(|name| dir.path().join(name));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(&mountpoint).unwrap();
    crate::fs::daemon::log_panics();
    let mount = Mount::start(&root, &mountpoint, &MountOptions::default()).unwrap();
    for _ in 0..20 {
        for script in [
            "cat .chronfs/panic",
            "dd if=.chronfs/panic bs=1 skip=7 count=1 iflag=skip_bytes",
            "echo x >> .chronfs/panic",
            "exec 3<> .chronfs/panic",
        ] {
            let output = sh(&mountpoint, script);
            let complained = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && complained.contains("Input/output error"), "{script}: {complained}");
        }
    }
    let output = sh(&mountpoint, "mkdir q && echo well > q/append.txt && cat q/messages.txt .chronfs/version");
    assert!(output.status.success() && output.stdout.starts_with(b"well\nchronfs "), "{output:?}");
    let output = sh(&mountpoint, "cat .chronfs/log");
    let log = String::from_utf8_lossy(&output.stdout);
    let place = format!("{}/.chronfs/panic: EIO: panicked at {}:", mountpoint.display(), file!());
    for op in ["open", "read", "write"] {
        let line = log.lines().find(|line| line.contains(&format!(" error {op} {place}")));
        assert!(line.is_some_and(|line| line.contains(", on purpose (uid 0, pid ")), "{op}: {log}");
    }
    mount.unmounter().unmount().unwrap();
    mount.run_until_unmounted().unwrap();
}
