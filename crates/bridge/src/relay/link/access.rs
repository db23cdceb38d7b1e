//! How a relay gets in: files, which are read again at each connect.

use std::path::{Path, PathBuf};

use super::{Failure, Result};

/// How to get in. The files are read again at each connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// A NATS credentials file (JWT and seed).
    pub credentials: Option<PathBuf>,
    /// A file with a NATS token in its first line.
    pub token_file: Option<PathBuf>,
    /// A file with `user:password` in its first line.
    pub password_file: Option<PathBuf>,
    /// Certificates of authorities (PEM) that are trusted instead of the system's.
    pub ca: Option<PathBuf>,
    /// The client's certificate and key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Access {
    /// The user and the password, if there are some.
    pub(super) fn user_and_password(&self) -> Result<Option<(String, String)>> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let line = first_line(path)?;
        // It may just be being written.
        let (user, password) =
            line.split_once(':').ok_or_else(|| Failure::Again(format!("{}: not user:password", path.display())))?;
        Ok(Some((user.to_owned(), password.to_owned())))
    }

    /// The certificates of the authorities, and of the client with its key. An engine would read them itself, and say
    /// less where it can't.
    pub(super) fn pem(&self) -> Result<Pem> {
        let own = match &self.certificate {
            Some((certificate, key)) => Some((pem(certificate, "CERTIFICATE")?, pem(key, "PRIVATE KEY")?)),
            None => None,
        };
        Ok(Pem { ca: self.ca.as_ref().map(|path| pem(path, "CERTIFICATE")).transpose()?, own })
    }

    /// An error of the connection, in terms of what was asked for.
    pub(super) fn explained(&self, error: &dyn std::fmt::Display) -> String {
        let text = error.to_string();
        let Some((_, why)) = text.split_once("invalid peer certificate: ") else { return text };
        let trusted = self.ca.as_ref().map_or("the system's authorities".to_owned(), |ca| ca.display().to_string());
        format!("the server's certificate is not trusted, going by {trusted}: {why}")
    }
}

/// Texts of files.
#[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "the client of NATS reads the files itself"))]
pub(super) struct Pem {
    pub(super) ca: Option<String>,
    /// The client's certificate and key.
    pub(super) own: Option<(String, String)>,
}

pub(super) fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path);
    text.map_err(|error| Failure::Again(format!("{}: cannot read it: {error}", path.display())))
}

pub(super) fn first_line(path: &Path) -> Result<String> {
    Ok(read(path)?.lines().next().unwrap_or_default().to_owned())
}

fn pem(path: &Path, what: &str) -> Result<String> {
    match read(path)? {
        text if text.contains("-----BEGIN ") && text.contains(what) => Ok(text),
        _ => Err(Failure::Again(format!("{}: no {} in it", path.display(), what.to_lowercase()))),
    }
}
