//! The registered readers of a queue, without using them: names, positions, registering, moving, removing.

use crate::queue::Queue;
use crate::queue::entry::Bounds;
use crate::queue::error::{Error, Result};
use crate::queue::files::cursor::{self, CursorFile, ReaderPosition};
use crate::queue::files::dir::Access;
use crate::queue::format::names::check_name;
use crate::queue::inspect::ReaderInfo;

impl Queue {
    /// The names of the registered readers, sorted.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory can't be read.
    pub fn reader_names(&self) -> Result<Vec<String>> {
        cursor::names(&self.store.dir)
    }

    /// The next sequence number that a registered reader will consume.
    ///
    /// # Errors
    /// [`Error::NoSuchReader`], [`Error::InvalidName`], [`Error::Damaged`] if its cursor file is; [`Error::Io`].
    pub fn reader_position(&self, name: &str) -> Result<u64> {
        self.cursor_seq(&self.cursor(name, Access::Read)?)
    }

    /// Registers a reader at the first retained message; false if it is registered already.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::NameTooLong`], [`Error::Io`].
    pub fn add_reader(&self, name: &str) -> Result<bool> {
        check_name(name)?;
        self.add_reader_at(name, &self.bounds()?)
    }

    /// Like [`add_reader`](Self::add_reader), at the first message of these bounds.
    pub(crate) fn add_reader_at(&self, name: &str, bounds: &Bounds) -> Result<bool> {
        cursor::create(&self.store.dir, &self.store.geometry(), name, ReaderPosition::first(bounds))
    }

    /// A registered reader's cursor, for [`cursor_seq`](Self::cursor_seq) and others that must not look the name up
    /// again.
    pub(crate) fn cursor(&self, name: &str, access: Access) -> Result<CursorFile> {
        CursorFile::open(&self.store.dir, name, access)
    }

    /// Like [`reader_position`](Self::reader_position).
    pub(crate) fn cursor_seq(&self, cursor: &CursorFile) -> Result<u64> {
        cursor.read(&self.store.geometry()).map(|(place, _)| place.seq)
    }

    /// Like [`seek_reader`](Self::seek_reader).
    pub(crate) fn seek_cursor(&self, cursor: &CursorFile, seq: u64) -> Result<()> {
        let bounds = self.bounds()?;
        if !(bounds.first_seq..=bounds.next_seq).contains(&seq) {
            let what = format!("message {seq}; the queue has {} to {}", bounds.first_seq, bounds.next_seq);
            return Err(Error::NoSuchPosition { path: self.path().to_path_buf(), what });
        }
        cursor.set(&self.store.geometry(), ReaderPosition { seq, position: None })
    }

    /// The part of [`inspect`](Self::inspect) about one reader.
    pub(crate) fn inspect_cursor(&self, cursor: &CursorFile) -> Result<ReaderInfo> {
        self.store.inspect_cursor(cursor)
    }

    /// Removes a reader that no process is using.
    ///
    /// # Errors
    /// [`Error::ReaderInUse`], [`Error::NoSuchReader`], [`Error::InvalidName`], [`Error::Io`].
    pub fn remove_reader(&self, name: &str) -> Result<()> {
        cursor::remove(&self.store.dir, name)
    }

    /// Moves a reader that no process is using to a retained message or to the end of the queue. Repairs a damaged
    /// cursor file.
    ///
    /// # Errors
    /// [`Error::NoSuchPosition`], [`Error::ReaderInUse`], [`Error::NoSuchReader`], [`Error::Io`].
    pub fn seek_reader(&self, name: &str, seq: u64) -> Result<()> {
        self.seek_cursor(&self.cursor(name, Access::Write)?, seq)
    }
}
