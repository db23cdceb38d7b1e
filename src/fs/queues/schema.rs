//! The schema of a queue, `schema.toml` beside its files: compiled once, and again when one of its files has changed.

use std::ffi::OsStr;
use std::io::Read as _;
use std::sync::Arc;

use chronfs_decode::{MAX_FILE, SCHEMA_FILE, Schema};
use rustix::fs::Stat;

use crate::fs::errno::{Errno, Result};
use crate::fs::lock;
use crate::fs::queues::open_queue::OpenQueue;
use crate::fs::tree::inodes::stable_hash;

/// What was read, and what came of it.
pub(in crate::fs) struct Loaded {
    files: Vec<(String, u64)>,
    stamp: u64,
    schema: std::result::Result<Arc<Schema>, String>,
}

impl OpenQueue {
    /// Its schema, and a number that is another one as soon as a file of the schema has changed. ENOENT if there is
    /// none, EINVAL if it can't be used.
    pub(crate) fn schema(&self) -> Result<(Arc<Schema>, u64)> {
        // Only a regular file is one.
        let now = self.file_stamp(SCHEMA_FILE).ok_or(Errno::ENOENT)?;
        let mut held = lock(&self.schema);
        let stamp_now = |name: &str| if name == SCHEMA_FILE { Some(now) } else { self.file_stamp(name) };
        let is_same = |(name, stamp): &(String, u64)| stamp_now(name) == Some(*stamp);
        let loaded = match held.take().filter(|loaded| loaded.files.iter().all(is_same)) {
            Some(loaded) => loaded,
            None => self.load(now),
        };
        let found = match &loaded.schema {
            Ok(schema) => Ok((Arc::clone(schema), loaded.stamp)),
            Err(reason) => Err(Errno::EINVAL.because(reason.clone())),
        };
        *held = Some(loaded);
        found
    }

    fn load(&self, now: u64) -> Loaded {
        let mut files = vec![(SCHEMA_FILE.to_owned(), now)];
        let schema = self.read(SCHEMA_FILE).and_then(|text| {
            let text = String::from_utf8(text).map_err(|_| format!("{SCHEMA_FILE}: it is not UTF-8"))?;
            let mut read = |name: &str| {
                files.push((name.to_owned(), self.file_stamp(name).unwrap_or_default()));
                self.read(name)
            };
            Schema::parse(&text, &mut read).map(Arc::new).map_err(|error| error.to_string())
        });
        let bytes: Vec<u8> = files.iter().flat_map(|(_, stamp)| stamp.to_le_bytes()).collect();
        Loaded { files, stamp: stable_hash(&[&bytes]), schema }
    }

    fn file_stamp(&self, name: &str) -> Option<u64> {
        let Stat { st_dev, st_ino, st_ctime, st_ctime_nsec, st_size, .. } =
            self.directory.stat_of(OsStr::new(name)).ok()?;
        let text = format!("{st_dev} {st_ino} {st_ctime} {st_ctime_nsec} {st_size}");
        Some(stable_hash(&[text.as_bytes()]))
    }

    fn read(&self, name: &str) -> std::result::Result<Vec<u8>, String> {
        let path = self.directory.dir().path_of(name);
        let failed = |what: String| format!("{}: {what}", path.display());
        let file =
            self.directory.open_file(OsStr::new(name)).map_err(|errno| failed(format!("cannot open it: {errno:?}")))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| failed(format!("cannot read it: {error}")))?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_FILE) {
            return Err(failed(format!("it has more than {MAX_FILE} bytes")));
        }
        Ok(bytes)
    }
}
