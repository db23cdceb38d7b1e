//! The right to continue using what has been opened.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::fs::credentials::Caller;
use crate::fs::errno::Result;
use crate::fs::lock;

/// How long a check of this right stays valid.
const RIGHT_HOLDS: Duration = Duration::from_millis(350);

/// The right to continue using what has been opened: without the mount, a holder that has lost it could not open the
/// next segment either.
pub(crate) struct Permission {
    caller: Caller,
    checked: Mutex<Instant>,
}

impl Permission {
    /// For a caller that was just found to have it.
    pub(crate) fn new(caller: &Caller) -> Self {
        Self { caller: caller.clone(), checked: Mutex::new(Instant::now()) }
    }

    /// The holder.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The result of `check`, which may be a moment old.
    pub(crate) fn check(&self, check: impl FnOnce(&Caller) -> Result<()>) -> Result<()> {
        let mut checked = lock(&self.checked);
        if checked.elapsed() >= RIGHT_HOLDS {
            check(&self.caller)?;
            *checked = Instant::now();
        }
        Ok(())
    }
}
