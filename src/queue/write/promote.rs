//! Changing the role of a queue.

use crate::queue::Queue;
use crate::queue::error::{Error, Result};
use crate::queue::files::lock::WriterLock;
use crate::queue::role::Role;

impl Queue {
    /// The queue's role, as it is now.
    pub fn role(&self) -> Role {
        Role::of(&self.store.refresh())
    }

    /// Changes the queue's role, while it has no writer. The new term must be higher than the present one; setting the
    /// present role again is allowed. Returns the previous role. On disk when this returns.
    ///
    /// ```
    /// use chronfs::queue::{Error, Queue, Role, Settings, WriterOptions};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let copy = Queue::create(dir.path().join("copy"), &Settings::default())?;
    /// copy.set_role(Role::Standby { term: 1 })?;
    /// assert!(matches!(copy.writer(), Err(Error::Standby { term: 1, .. })));
    /// let relay = copy.writer_with(&WriterOptions { as_standby: true, ..WriterOptions::default() })?;
    /// drop(relay);
    /// copy.set_role(Role::Active { term: 2 })?; // promoted
    /// copy.writer()?.append(1, b"from here")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::StaleTerm`], [`Error::Locked`] by a writer, [`Error::SettingsLocked`], [`Error::Io`].
    pub fn set_role(&self, role: Role) -> Result<Role> {
        // Whoever writes has checked the role.
        let _lock = WriterLock::take(&self.store.dir)?;
        let mut is_stale = false;
        let (before, _) = self.store.change(|geometry| {
            let now = Role::of(geometry);
            is_stale = role != now && role.term() <= now.term();
            if !is_stale {
                (geometry.is_standby, geometry.term) = (matches!(role, Role::Standby { .. }), role.term());
            }
        })?;
        let before = Role::of(&before);
        if is_stale {
            let path = self.path().to_path_buf();
            return Err(Error::StaleTerm { path, term: role.term(), present: before.term() });
        }
        Ok(before)
    }
}
