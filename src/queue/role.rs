//! The role of a queue: one that programs append to, or a copy that only its relay appends to.

use std::fmt;

use crate::queue::files::control::Geometry;

/// Who may append to a queue, since which term.
///
/// A term is a number that rises with every change of roles among a queue and its copies. It tells which of them was
/// promoted last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Any writer, as in a new queue (term 0).
    Active {
        /// Since when.
        term: u64,
    },
    /// Only a writer that says so ([`WriterOptions::as_standby`](super::WriterOptions::as_standby)): the queue is a copy.
    Standby {
        /// Since when.
        term: u64,
    },
}

/// That of a new queue.
impl Default for Role {
    fn default() -> Self {
        Self::Active { term: 0 }
    }
}

impl Role {
    /// The term in which the queue got this role.
    pub fn term(self) -> u64 {
        let (Self::Active { term } | Self::Standby { term }) = self;
        term
    }

    /// The word for it in JSON and for people: `active` or `standby`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active { .. } => "active",
            Self::Standby { .. } => "standby",
        }
    }

    pub(crate) fn of(geometry: &Geometry) -> Self {
        let term = geometry.term;
        if geometry.is_standby { Self::Standby { term } } else { Self::Active { term } }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, term {}", self.as_str(), self.term())
    }
}
