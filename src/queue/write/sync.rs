//! Syncs to disk: by a call, or in the background as the policy says.

use crate::queue::error::Result;
use crate::queue::write::writer::QueueWriter;

impl QueueWriter {
    /// Makes everything appended so far survive a power cut before it returns.
    ///
    /// # Errors
    /// [`Error::Io`](crate::queue::Error::Io) if the system can't write it. What was not written can't be vouched for any
    /// more, so the writer refuses further work ([`Error::Poisoned`](crate::queue::Error::Poisoned)); readers continue.
    pub fn flush_sync(&mut self) -> Result<()> {
        self.enter()?;
        let synced = self.sync_all();
        self.leave();
        synced
    }

    fn sync_all(&mut self) -> Result<()> {
        self.check()?;
        self.publish_head();
        let alone = self.supply.syncing();
        let synced = self.store.sync_segments(self.unsynced, self.segment.id);
        drop(alone);
        // Again: what was truncated during the sync is not on the disk.
        let synced = synced.and_then(|()| self.check());
        match &synced {
            Ok(()) => {
                self.counted.stats.syncs += 1;
                self.unsynced = self.segment.id;
            }
            Err(error) => {
                self.counted.stats.failed_syncs += 1;
                self.poisoned = Some(error.to_string());
                self.turn.close();
            }
        }
        synced
    }

    /// Starts syncing everything appended so far to disk, and does not wait for it; nor does dropping the writer, if the
    /// sync has not begun by then.
    ///
    /// # Errors
    /// [`Error::Poisoned`](crate::queue::Error::Poisoned) if an earlier sync has failed.
    pub fn flush_async(&mut self) -> Result<()> {
        self.check()?;
        self.request_sync();
        Ok(())
    }

    /// Asks for a sync of everything in the background.
    #[cold]
    pub(in crate::queue) fn request_sync(&mut self) {
        self.sync_at_seq = self.options.sync.next_sync(self.next_seq);
        self.supply.request_sync();
    }
}
