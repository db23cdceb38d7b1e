//! Why a relay or an archiver can't go on, and how long to wait before the next attempt.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Why it can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It may go on later, from a fresh look at the other side.
    #[error("{0}")]
    Again(String),
    /// An object is not there, or no longer.
    #[error("{0}")]
    Missing(String),
    /// The other side takes no more messages for now.
    #[error("target full: {0}")]
    Full(String),
    /// The queue and the other side contradict each other, or somebody else has taken over: an operator must decide.
    #[error("{0}")]
    Refused(String),
    /// The configuration can't work.
    #[error("{0}")]
    Config(String),
    /// The local queue can't be used.
    #[error(transparent)]
    Queue(#[from] chronfs::Error),
}

impl Failure {
    /// Whether a later attempt can succeed without an operator.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Again(_) | Self::Missing(_) | Self::Full(_))
    }

    /// The exit code for it: 77 for a contradiction, 78 for the configuration, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => 77,
            Self::Config(_) => 78,
            Self::Again(_) | Self::Missing(_) | Self::Full(_) | Self::Queue(_) => 1,
        }
    }
}

/// The result of what a relay or an archiver does.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Back-off between attempts.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// The time before an attempt after so many failures.
pub(crate) fn back_off(failures: u32) -> Duration {
    let [least, most] = BACK_OFF;
    let time = least.saturating_mul(1 << failures.min(10)).min(most);
    let jitter = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    // 75 % to 125 %.
    time.mul_f64(0.75 + f64::from(jitter % 1000) / 2000.0)
}
