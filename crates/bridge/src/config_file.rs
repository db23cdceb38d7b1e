//! Configuration files.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::{Failure, Result};

/// Reads a TOML file.
///
/// # Errors
/// [`Failure::Config`], with the line.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bad = |error: &dyn std::fmt::Display| Failure::Config(format!("{}: {error}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| bad(&error))?;
    toml::from_str(&text).map_err(|error| bad(&error))
}

/// Finds the files that it names: those that are not absolute in systemd's directory of credentials, if there is one,
/// or beside it.
pub(crate) fn find<const N: usize>(config: &Path, files: [&mut Option<PathBuf>; N]) {
    let dir = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| config.parent().unwrap_or(Path::new("")).to_path_buf());
    for file in files.into_iter().flatten() {
        *file = dir.join(&*file);
    }
}
