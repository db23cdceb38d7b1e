//! Errors of the engine as Python's exceptions, whose classes are in `python/chronfs/_errors.py`.

use std::path::Path;

use chronfs::Error;
use chronfs::queue::LockHolder;
use pyo3::prelude::*;
use pyo3::types::{PyModule, PyString};

use crate::message::Gap;

/// Turns an engine's result into one for Python.
pub(crate) trait OrRaise<T> {
    /// The value; an error as the exception for it.
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for chronfs::Result<T> {
    #[inline]
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| exception(py, &error))
    }
}

/// The exception for an error.
#[cold]
pub(crate) fn exception(py: Python<'_>, error: &Error) -> PyErr {
    let made = new(py, class_of(error), error.to_string(), error.path()).and_then(|value| {
        match error {
            Error::Io { source, .. } => value.setattr("errno", source.raw_os_error())?,
            Error::Damaged { offset, .. } => value.setattr("offset", offset)?,
            Error::QueueFull { max_bytes, .. } => value.setattr("max_bytes", max_bytes)?,
            Error::TooLarge { max, .. } => value.setattr("max_len", max)?,
            _ => {}
        }
        if let Some(LockHolder::Process { pid, command }) = error.holder() {
            value.setattr("pid", pid)?;
            value.setattr("command", command)?;
        }
        Ok(PyErr::from_value(value))
    });
    made.unwrap_or_else(|error| error)
}

/// The exception for a gap, with `on_gap="raise"`.
#[cold]
pub(crate) fn gap(py: Python<'_>, path: &Path, gap: Gap) -> PyErr {
    let made = new(py, "GapError", format!("{}: {gap}", path.display()), Some(path)).and_then(|value| {
        value.setattr("gap", gap)?;
        Ok(PyErr::from_value(value))
    });
    made.unwrap_or_else(|error| error)
}

/// The exception for the use of something that has been closed.
#[cold]
pub(crate) fn closed(py: Python<'_>, path: &Path) -> PyErr {
    let text = format!("{}: it has been closed; open it again", path.display());
    new(py, "Closed", text, Some(path)).map_or_else(|error| error, PyErr::from_value)
}

/// The exception for an argument that is not allowed.
#[cold]
pub(crate) fn invalid(py: Python<'_>, text: impl Into<String>) -> PyErr {
    new(py, "InvalidInput", text.into(), None).map_or_else(|error| error, PyErr::from_value)
}

fn new<'py>(py: Python<'py>, class: &str, text: String, path: Option<&Path>) -> PyResult<Bound<'py, PyAny>> {
    let classes = PyModule::import(py, "chronfs._errors")?;
    let value = classes.getattr(PyString::new(py, class))?.call1((text,))?;
    value.setattr("path", path)?;
    Ok(value)
}

fn class_of(error: &Error) -> &'static str {
    match error {
        Error::Io { .. } => "IoError",
        Error::NotAQueue { .. } => "NotAQueue",
        Error::NoSuchReader { .. } => "NoSuchReader",
        Error::NoSuchPosition { .. } => "NoSuchPosition",
        Error::AlreadyExists { .. } => "AlreadyExists",
        Error::Locked { .. } => "Locked",
        Error::ReaderInUse { .. } => "ReaderInUse",
        Error::SettingsLocked { .. } => "SettingsLocked",
        Error::QueueFull { .. } => "QueueFull",
        Error::Standby { .. } | Error::NotStandby { .. } | Error::StaleTerm { .. } => "WrongRole",
        Error::Damaged { .. } | Error::Refused { .. } => "Damaged",
        Error::UnsupportedVersion { .. } => "Unsupported",
        Error::TooLarge { .. } => "TooLarge",
        Error::Poisoned { .. } => "Poisoned",
        Error::Forked { .. } => "Forked",
        Error::Stopped { .. } => "Stopped",
        Error::InvalidName { .. }
        | Error::NameTooLong { .. }
        | Error::ReservedType
        | Error::TimestampInPast { .. }
        | Error::TimestampInFuture { .. }
        | Error::Diverged { .. }
        | Error::InvalidSetting(_) => "InvalidInput",
        _ => "Error",
    }
}
