//! What can be wrong: with a schema, with a payload.

use thiserror::Error;

/// A schema that can't be used: the file, the line where it is known, and what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file}{}: {what}", line.map_or_else(String::new, |line| format!(":{line}")))]
pub struct SchemaError {
    /// The file, as the schema names it.
    pub file: String,
    /// Counted from 1.
    pub line: Option<usize>,
    /// What is wrong, on one line.
    pub what: String,
}

impl SchemaError {
    pub(crate) fn new(file: &str, line: Option<usize>, what: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, what: what.into() }
    }
}

/// Why a payload is not what its schema says.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Undecodable(String);

impl Undecodable {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// The payload ends before what the schema puts there.
    pub(crate) fn short(what: &str, needed: usize, len: usize) -> Self {
        Self(format!("{what} needs {needed} bytes, the payload has {len}"))
    }
}
