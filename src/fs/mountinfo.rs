//! What is mounted where, from `/proc/self/mountinfo`. Accessing the mount itself would be a request to this process.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// `major:minor` of its device, which for FUSE is unique to the mount.
    pub(crate) device: String,
    pub(crate) mountpoint: PathBuf,
    pub(crate) fs_type: String,
    pub(crate) source: PathBuf,
    /// Who mounted it; None of other file systems than FUSE's.
    pub(crate) user: Option<u32>,
}

impl Mounted {
    /// Whether it is a FUSE mount of this subtype.
    pub(crate) fn is_of(&self, subtype: &str) -> bool {
        self.fs_type.strip_prefix("fuse.") == Some(subtype)
    }
}

/// The topmost mount exactly at a path, if there is one.
pub(crate) fn at(mountpoint: &Path) -> io::Result<Option<Mounted>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(parse(&table).filter(|mounted| mounted.mountpoint == mountpoint).last())
}

/// The mount that contains a path, without accessing the path itself: a dead mount would not answer.
pub(crate) fn holding(path: &Path) -> io::Result<Option<Mounted>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let path = std::path::absolute(path)?;
    let above = parse(&table).filter(|mounted| path.starts_with(&mounted.mountpoint));
    Ok(above.max_by_key(|mounted| mounted.mountpoint.as_os_str().len()))
}

/// All FUSE mounts of this subtype.
pub(crate) fn of(subtype: &str) -> io::Result<Vec<Mounted>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(parse(&table).filter(|mounted| mounted.is_of(subtype)).collect())
}

/// Whether a mount of this device remains in any visible mount namespace: others may hold copies.
pub(crate) fn is_left_anywhere(device: &str) -> bool {
    let mut namespaces = HashSet::new();
    let Ok(processes) = fs::read_dir("/proc") else { return false };
    processes.flatten().any(|process| {
        let path = process.path();
        let is_process = process.file_name().as_bytes().first().is_some_and(u8::is_ascii_digit);
        is_process
            && fs::read_link(path.join("ns/mnt")).is_ok_and(|namespace| namespaces.insert(namespace))
            && fs::read(path.join("mountinfo")).is_ok_and(|table| parse(&table).any(|mounted| mounted.device == device))
    })
}

fn parse(table: &[u8]) -> impl Iterator<Item = Mounted> {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = fields.nth(2)?;
        let mountpoint = fields.nth(1)?;
        // A number of optional fields, then a dash.
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let fs_type = fields.next()?;
        Some(Mounted {
            device: String::from_utf8_lossy(device).into_owned(),
            mountpoint: unescape(mountpoint),
            fs_type: String::from_utf8_lossy(fs_type).into_owned(),
            source: unescape(fields.next()?),
            user: fields.next().and_then(user_of),
        })
    })
}

/// `rw,user_id=1000,group_id=1000`: 1000.
fn user_of(options: &[u8]) -> Option<u32> {
    std::str::from_utf8(options).ok()?.split(',').find_map(|option| option.strip_prefix("user_id=")?.parse().ok())
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(OsString::from_vec(digits.to_vec()).to_str()?, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let table =
            b"36 35 98:0 / /mnt/a\\040b rw,noatime master:1 shared:7 - fuse.chronfs /srv/bus rw,user_id=4210,group_id=7\n\
            37 35 98:1 / /mnt/c rw - ext4 /dev/sda1 rw\ngarbage\n";
        let mounts: Vec<_> = parse(table).collect();
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0].mountpoint, Path::new("/mnt/a b"));
        assert_eq!((mounts[0].device.as_str(), mounts[0].source.as_path()), ("98:0", Path::new("/srv/bus")));
        assert_eq!((mounts[0].user, mounts[1].user), (Some(4210), None));
        assert!(mounts[0].is_of("chronfs") && !mounts[1].is_of("chronfs"));
        assert!(at(Path::new("/proc")).unwrap().is_some());
    }
}
