//! The files of a queue, `DIR/queue=NAME/date=YYYY-MM-DD/TABLE-ID-FIRST-LAST.ENDING`, where ID is the queue's own.
//!
//! Invariants, also after a kill or a power cut at any point:
//! - A file with a final name is complete: it was written under a temporary name, synced and renamed.
//! - The names say which messages have been exported. The files of one chunk, one for each table, appear together:
//!   all of them are complete before the first gets its final name, and the next run gives the others theirs.
//! - One process at a time writes for a queue; the lock of its directory decides.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::failure::{Failure, Result};

/// Longest name of a table in the name of a file, in bytes.
const MAX_TABLE: usize = 128;
/// The end of the name of a file that is being written.
const WRITING: &str = ".tmp";
/// Of one that is complete and waits for the first file of its chunk.
const WAITING: &str = ".ready";

/// The messages that a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// Where the files of a queue are.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    queue_id: u64,
    ending: &'static str,
    /// Sorted; they don't overlap.
    covered: Vec<Range>,
    /// The lock.
    _held: File,
}

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct Draft {
    table: String,
    /// Of its date.
    dir: PathBuf,
    path: PathBuf,
}

impl Draft {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A name as part of `key=value`: percent-encoded, as Hive does it.
pub(crate) fn partition_value(name: &OsStr) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let put = |byte: &u8| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") };
    name.as_bytes().iter().map(put).collect()
}

impl Store {
    /// Opens the directory of a queue, creating it, and finishes or removes what an earlier run has left there.
    pub(crate) fn open(dir: &Path, value: &str, queue_id: u64, ending: &'static str) -> Result<Self> {
        let own = dir.join(format!("queue={value}"));
        fs::create_dir_all(&own).map_err(Failure::io(&own, "create it"))?;
        let held = File::open(&own).map_err(Failure::io(&own, "open it"))?;
        flock(&held, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => Failure(format!("{}: another export is running here", own.display())),
            error => Failure::io(&own, "lock it")(error),
        })?;
        sync(dir)?;
        let mut store = Self { dir: own, queue_id, ending, covered: Vec::new(), _held: held };
        store.tidy()?;
        Ok(store)
    }

    fn tidy(&mut self) -> Result<()> {
        for date in list(&self.dir)? {
            let is_date = date.file_name().is_some_and(|name| name.as_bytes().starts_with(b"date="));
            if !is_date || !date.is_dir() {
                continue;
            }
            let (mut files, mut waiting) = (Vec::new(), Vec::new());
            for path in list(&date)? {
                let Some(name) = path.file_name().and_then(OsStr::to_str) else { continue };
                match name.strip_prefix('.') {
                    Some(hidden) if hidden.ends_with(WRITING) => remove(&path)?,
                    Some(hidden) => {
                        waiting.extend(hidden.strip_suffix(WAITING).map(|name| (name.to_owned(), path.clone())));
                    }
                    None => files.push(name.to_owned()),
                }
            }
            // The rest of a name, after the table's, is that of its chunk.
            let chunk = |name: &str| name.rsplitn(4, '-').take(3).collect::<Vec<_>>().join("-");
            for (name, path) in waiting {
                if files.iter().any(|file| chunk(file) == chunk(&name)) {
                    rename(&path, &date.join(name))?;
                } else {
                    remove(&path)?;
                }
            }
            sync(&date)?;
            let ranges: Vec<_> = files.iter().filter_map(|name| self.range_of(name)).collect();
            self.covered.extend(ranges);
        }
        self.covered.sort_unstable_by_key(|range| (range.first, range.last));
        Ok(())
    }

    /// The messages of a file of this queue and format, by its name.
    fn range_of(&self, name: &str) -> Option<Range> {
        let name = name.strip_suffix(self.ending)?.strip_suffix('.')?;
        let mut parts = name.rsplitn(4, '-');
        let (last, first, id) = (parts.next()?, parts.next()?, parts.next()?);
        parts.next()?;
        if u64::from_str_radix(id, 16) != Ok(self.queue_id) {
            return None;
        }
        let range = Range { first: first.parse().ok()?, last: last.parse().ok()? };
        (range.first <= range.last).then_some(range)
    }

    /// The parts of `start..end` that no file holds.
    pub(crate) fn missing(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let (mut next, mut missing) = (start, Vec::new());
        for range in &self.covered {
            if range.first > next && next < end {
                missing.push((next, range.first.min(end)));
            }
            next = next.max(range.last.saturating_add(1));
        }
        if next < end {
            missing.push((next, end));
        }
        missing
    }

    /// Starts a file of the chunk that begins with message `first`.
    pub(crate) fn draft(&self, table: &str, date: &str, first: u64) -> Result<(Draft, File)> {
        if table.len() > MAX_TABLE {
            return Err(Failure(format!(
                "the name of the message {table:?} is too long for a file: {MAX_TABLE} bytes"
            )));
        }
        let dir = self.dir.join(format!("date={date}"));
        if !dir.is_dir() {
            fs::create_dir_all(&dir).map_err(Failure::io(&dir, "create it"))?;
            sync(&self.dir)?;
        }
        let path = dir.join(format!(".{table}-{:016x}-{first}.{}{WRITING}", self.queue_id, self.ending));
        let file = File::create(&path).map_err(Failure::io(&path, "create it"))?;
        Ok((Draft { table: table.to_owned(), dir, path }, file))
    }

    /// Gives the files of a chunk, which have been synced, their final names; returns these.
    pub(crate) fn publish(&self, drafts: &[Draft], Range { first, last }: Range) -> Result<Vec<PathBuf>> {
        let name =
            |draft: &Draft| format!("{}-{:016x}-{first:012}-{last:012}.{}", draft.table, self.queue_id, self.ending);
        let Some((leader, others)) = drafts.split_first() else { return Ok(Vec::new()) };
        let ready = |draft: &Draft| draft.dir.join(format!(".{}{WAITING}", name(draft)));
        for draft in others {
            rename(&draft.path, &ready(draft))?;
        }
        if !others.is_empty() {
            sync(&leader.dir)?;
        }
        let mut paths = vec![leader.dir.join(name(leader))];
        rename(&leader.path, &leader.dir.join(name(leader)))?;
        for draft in others {
            let path = draft.dir.join(name(draft));
            rename(&ready(draft), &path)?;
            paths.push(path);
        }
        sync(&leader.dir)?;
        Ok(paths)
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let entries = entries.map_err(Failure::io(dir, "list it"))?;
    Ok(entries.into_iter().map(|entry| entry.path()).collect())
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(Failure::io(path, "remove it"))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Failure::io(from, "rename it"))
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Failure::io(dir, "sync it"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ID: u64 = 0xabc;

    fn store(dir: &Path) -> Store {
        Store::open(dir, "q", ID, "csv").unwrap()
    }

    fn publish(store: &Store, tables: &[&str], first: u64, last: u64) -> Vec<PathBuf> {
        let drafts: Vec<_> = tables.iter().map(|table| store.draft(table, "2024-08-08", first).unwrap().0).collect();
        store.publish(&drafts, Range { first, last }).unwrap()
    }

    #[test]
    fn names_say_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let first = store(dir.path());
        assert_eq!(first.missing(1, 100), [(1, 100)]);
        publish(&first, &["a"], 5, 9);
        publish(&first, &["a", "b-c"], 20, 20);
        drop(first);
        // Of another queue, of another format, of another program.
        let date = dir.path().join("queue=q/date=2024-08-08");
        for name in ["a-0000000000000abd-1-100.csv", "a-0000000000000abc-1-100.arrow", "x.csv", "a-1-2-3.csv", "-.csv"]
        {
            fs::write(date.join(name), "").unwrap();
        }
        let store = store(dir.path());
        assert_eq!(store.missing(1, 100), [(1, 5), (10, 20), (21, 100)]);
        assert_eq!(store.missing(6, 20), [(10, 20)]);
        assert_eq!(store.missing(7, 9), []);
        assert_eq!(store.missing(15, 15), []);
    }

    #[test]
    fn what_was_complete_is_finished_and_the_rest_removed() {
        let dir = tempfile::tempdir().unwrap();
        let first = store(dir.path());
        let paths = publish(&first, &["a", "b"], 1, 9);
        // Killed after the first of two renames.
        let name = paths[1].file_name().unwrap().to_str().unwrap();
        let date = paths[1].parent().unwrap();
        fs::rename(&paths[1], date.join(format!(".{name}.ready"))).unwrap();
        // Killed before the first rename of another chunk, and while writing a third one.
        fs::write(date.join(format!(".b-{ID:016x}-000000000010-000000000012.csv.ready")), "").unwrap();
        first.draft("a", "2024-08-08", 13).unwrap();
        drop(first);
        let store = store(dir.path());
        assert_eq!(store.missing(1, 20), [(10, 20)]);
        let mut left = list(date).unwrap();
        left.sort();
        assert_eq!(left, paths);
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let _first = store(dir.path());
        let error = Store::open(dir.path(), "q", ID, "csv").unwrap_err();
        assert!(error.to_string().ends_with("queue=q: another export is running here"), "{error}");
        Store::open(dir.path(), "other", ID, "csv").unwrap();
    }

    #[test]
    fn any_name_is_a_partition() {
        assert_eq!(partition_value(OsStr::new("feeds/btc usdt")), "feeds%2Fbtc%20usdt");
        assert_eq!(partition_value(OsStr::from_bytes(b"a=\xff%")), "a%3D%FF%25");
    }
}
