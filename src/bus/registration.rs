//! A reader that is registered on a queue for as long as a value lives.

use std::path::Path;

use crate::queue::{Queue, Result};

/// Registers a reader and removes it when dropped, so that a process that exits normally no longer pins anything.
///
/// A process that is killed leaves the reader registered; the next registration of the same name takes it over, at its
/// position. Drop the [`QueueReader`](crate::QueueReader) that uses it first: a reader in use is not removed.
///
/// ```
/// use chronfs::bus::ReaderRegistration;
/// use chronfs::queue::{Queue, Settings};
///
/// # let dir = tempfile::tempdir()?;
/// let queue = Queue::create(dir.path().join("orders_out"), &Settings::default())?;
/// {
///     let registration = ReaderRegistration::new(queue.path(), "router")?;
///     let mut reader = registration.queue().reader(registration.name())?;
///     assert!(reader.next()?.is_none());
///     drop(reader);
///     assert_eq!(queue.reader_names()?, ["router"]);
/// }
/// assert!(queue.reader_names()?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ReaderRegistration {
    queue: Queue,
    name: String,
    is_new: bool,
    keep: bool,
}

impl ReaderRegistration {
    /// Registers the reader, at the first retained message if it is new.
    ///
    /// # Errors
    /// As [`Queue::open`] and [`Queue::add_reader`].
    pub fn new(queue: impl AsRef<Path>, name: &str) -> Result<Self> {
        let queue = Queue::open(queue)?;
        let is_new = queue.add_reader(name)?;
        Ok(Self { queue, name: name.to_owned(), is_new, keep: false })
    }

    /// The queue, opened.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The reader's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was not registered before.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Leaves the reader registered, with its position.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// Removes the reader and reports errors, which dropping can't.
    ///
    /// # Errors
    /// As [`Queue::remove_reader`].
    pub fn remove(mut self) -> Result<()> {
        self.keep = true;
        self.queue.remove_reader(&self.name)
    }
}

impl Drop for ReaderRegistration {
    fn drop(&mut self) {
        if !self.keep {
            // Another process may have removed it, or use it now: then it is theirs.
            let _ = self.queue.remove_reader(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Settings;

    #[test]
    fn it_is_removed_with_its_value_unless_kept_or_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::create(dir.path().join("q"), &Settings::default()).unwrap();
        queue.writer().unwrap().append(1, b"x").unwrap();
        let names = || queue.reader_names().unwrap();
        let register = || ReaderRegistration::new(queue.path(), "router").unwrap();

        let registration = register();
        assert!(registration.is_new() && names() == ["router"]);
        let mut reader = queue.reader("router").unwrap();
        reader.next().unwrap();
        reader.commit();
        drop(registration);
        assert_eq!(names(), ["router"], "in use");
        drop(reader);

        let registration = register();
        assert!(!registration.is_new());
        assert_eq!(queue.reader_position("router").unwrap(), 2, "taken over where it stood");
        registration.keep();
        assert_eq!(names(), ["router"]);
        register().remove().unwrap();
        assert!(names().is_empty());
        assert!(ReaderRegistration::new(dir.path().join("none"), "router").is_err());
        assert!(ReaderRegistration::new(queue.path(), "../x").is_err());
    }
}
