//! What ends an export, as text for people.

use std::fmt;
use std::io::Write as _;
use std::path::Path;

use chronfs::printable::printable;

/// A failure with its path and what was tried.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<chronfs::Error> for Failure {
    fn from(error: chronfs::Error) -> Self {
        Self(error.to_string())
    }
}

impl Failure {
    pub(crate) fn io<E: fmt::Display>(path: &Path, doing: &str) -> impl FnOnce(E) -> Self {
        let start = format!("{}: cannot {doing}", path.display());
        move |error| Self(format!("{start}: {error}"))
    }
}

/// A line on stderr. Nothing can be done when stderr is gone.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "chron-export: {}", printable(text));
}
