//! The right to go on with what has been opened.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::fs::credentials::Caller;
use crate::fs::errno::Result;
use crate::fs::lock;

/// How long it is believed that who has opened something may go on with it.
const RIGHT_HOLDS: Duration = Duration::from_millis(350);

/// The right to go on with what has been opened: without the mount its holder could not open the next segment either once
/// that is taken away.
pub(crate) struct Permission {
    caller: Caller,
    checked: Mutex<Instant>,
}

impl Permission {
    /// Of a caller who has been found to have it just now.
    pub(crate) fn new(caller: &Caller) -> Self {
        Self { caller: caller.clone(), checked: Mutex::new(Instant::now()) }
    }

    /// Whose it is.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// What `check` finds now, or has found just before.
    pub(crate) fn check(&self, check: impl FnOnce(&Caller) -> Result<()>) -> Result<()> {
        let mut checked = lock(&self.checked);
        if checked.elapsed() >= RIGHT_HOLDS {
            check(&self.caller)?;
            *checked = Instant::now();
        }
        Ok(())
    }
}
