//! The bytes of a queue's files at one instant.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{DirEntryExt, FileExt};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

/// In the control block: the helper thread's heartbeat. It changes by itself.
const HEARTBEAT: std::ops::Range<usize> = 392..400;

/// All files of a queue, by their names relative to its directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct State(BTreeMap<String, Vec<u8>>);

impl State {
    /// Creates a directory that holds these files.
    pub(crate) fn restore(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        for (name, bytes) in &self.0 {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = File::create(path).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            // Zeros stay a hole, as in a file that has been allocated and not written.
            for (index, page) in bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|&byte| byte != 0)) {
                file.write_all_at(page, index as u64 * 4096).unwrap();
            }
        }
    }

    /// Whether the file is missing or has nothing but zeros there.
    pub(crate) fn is_zero(&self, name: &str, range: std::ops::Range<usize>) -> bool {
        self.0.get(name).is_none_or(|bytes| bytes[range].iter().all(|&byte| byte == 0))
    }
}

/// Reads a directory repeatedly, and tells when something has changed.
pub(crate) struct Watched {
    dir: PathBuf,
    /// Names, inodes and open files, as of the last listing.
    files: Vec<(String, u64, File)>,
    /// The files that a process may have mapped.
    maps: Vec<(String, Mmap)>,
    state: State,
    scratch: Vec<u8>,
}

impl Watched {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
            files: Vec::new(),
            maps: Vec::new(),
            state: State::default(),
            scratch: vec![0; 1 << 20],
        }
    }

    /// The state, if it has changed since the last call.
    pub(crate) fn changed(&mut self) -> Option<&State> {
        let listed = self.list();
        let mut changed = listed.len() != self.files.len()
            || listed.iter().zip(&self.files).any(|(new, old)| new.0 != old.0 || new.1 != old.1);
        if changed {
            // A file may be removed between listing and opening.
            let open = |(name, inode): (String, u64)| Some((File::open(self.dir.join(&name)).ok()?, name, inode));
            self.files = listed.into_iter().filter_map(open).map(|(file, name, inode)| (name, inode, file)).collect();
            let names: Vec<_> = self.files.iter().map(|(name, ..)| name).collect();
            self.state.0.retain(|name, _| names.contains(&name));
            self.map();
        }
        for (name, _, file) in &self.files {
            let count = read_all(file, &mut self.scratch);
            let bytes = &mut self.scratch[..count];
            if name == "control.meta" && count >= HEARTBEAT.end {
                bytes[HEARTBEAT].fill(0);
            }
            if self.state.0.get(name).is_none_or(|old| old != bytes) {
                self.state.0.insert(name.clone(), bytes.to_vec());
                changed = true;
            }
        }
        changed.then_some(&self.state)
    }

    /// Whether a byte of a mapped file has changed since the last call. Does not see files created or removed.
    pub(crate) fn is_changed_in_memory(&self) -> bool {
        self.maps.iter().any(|(name, map)| {
            let Some(old) = self.state.0.get(name) else { return true };
            if name != "control.meta" {
                return old[..] != map[..];
            }
            old[..HEARTBEAT.start] != map[..HEARTBEAT.start] || old[HEARTBEAT.end..] != map[HEARTBEAT.end..]
        })
    }

    fn map(&mut self) {
        self.maps.clear();
        for (name, _, file) in &self.files {
            let is_whole = file.metadata().is_ok_and(|metadata| metadata.len() >= 4096);
            if is_whole && !name.ends_with(".tmp") {
                // SAFETY: nothing truncates these files while they are mapped.
                self.maps.push((name.clone(), unsafe { Mmap::map(file) }.unwrap()));
            }
        }
    }

    fn list(&self) -> Vec<(String, u64)> {
        let mut listed = Vec::new();
        for prefix in ["", "readers/"] {
            let Ok(entries) = std::fs::read_dir(self.dir.join(prefix)) else { continue };
            for entry in entries {
                let entry = entry.unwrap();
                if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                    listed.push((format!("{prefix}{}", entry.file_name().to_string_lossy()), entry.ino()));
                }
            }
        }
        listed.sort_unstable();
        listed
    }
}

fn read_all(file: &File, buffer: &mut [u8]) -> usize {
    let mut count = 0;
    loop {
        match file.read_at(&mut buffer[count..], count as u64).unwrap() {
            0 => return count,
            more => count += more,
        }
    }
}
