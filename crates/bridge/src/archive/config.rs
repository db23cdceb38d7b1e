//! An archiver's configuration: a TOML file, or the command line's options.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Access, Address, ArchiveOptions};
use crate::config_file;
use crate::{Failure, Result};

/// How hard to compress unless it is said: fast.
pub const DEFAULT_LEVEL: i32 = 3;

/// One archiver, as in its TOML file. Names of files that are not absolute are looked up in systemd's directory of
/// credentials, if there is one, or beside the configuration.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A queue, or a directory of queues.
    pub from: PathBuf,
    /// The address of the archive.
    pub to: String,
    /// The archiver's name, by which the queue knows it.
    #[serde(default = "default_name")]
    pub name: String,
    /// How hard to compress: 1 to 19.
    #[serde(default = "default_level")]
    pub level: i32,
    /// Archive damaged segments, too, as they are.
    #[serde(default)]
    pub damaged: bool,
    /// Where figures are served: /metrics and /health.
    pub metrics: Option<SocketAddr>,
    /// How to get in.
    #[serde(default)]
    pub access: AccessConfig,
    /// Archive what is sealed, then end.
    #[serde(skip)]
    pub once: bool,
}

/// The table `[access]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// A file of lines NAME=VALUE.
    pub credentials: Option<PathBuf>,
    /// Certificates of authorities.
    pub ca: Option<PathBuf>,
    /// What else the store's client is to know.
    pub options: BTreeMap<String, String>,
}

fn default_name() -> String {
    "archive".to_owned()
}

fn default_level() -> i32 {
    DEFAULT_LEVEL
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Failure::Config`], with the line.
    pub fn read(path: &Path) -> Result<Self> {
        let mut config: Self = config_file::read(path)?;
        let AccessConfig { credentials, ca, .. } = &mut config.access;
        config_file::find(path, [credentials, ca]);
        Ok(config)
    }

    /// What it says about the queue with this path below a directory of queues.
    ///
    /// # Errors
    /// [`Failure::Config`]
    pub fn options(&self, below: Option<&Path>) -> Result<ArchiveOptions> {
        let target: Address = self.to.parse().map_err(Failure::Config)?;
        if !(1..=19).contains(&self.level) {
            return Err(Failure::Config(format!("level {}: allowed are 1 to 19", self.level)));
        }
        let AccessConfig { credentials, ca, options } = self.access.clone();
        Ok(ArchiveOptions {
            name: self.name.clone(),
            target: below.map_or_else(|| target.clone(), |below| target.below(below)),
            access: Access { credentials, ca, options },
            level: self.level,
            once: self.once,
            damaged: self.damaged,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_wrong_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ticks.toml");
        let text = "from = '/srv/bus'\nto = 's3://b/archive'\n[access]\ncredentials = 's3.env'\n[access.options]\n\
                    region = 'eu-west-1'\n";
        std::fs::write(&path, text).unwrap();
        let options = Config::read(&path).unwrap().options(Some(Path::new("feeds/ticks"))).unwrap();
        assert_eq!(options.target.to_string(), "s3://b/archive/feeds/ticks");
        assert_eq!((options.name.as_str(), options.level), ("archive", DEFAULT_LEVEL));
        assert_eq!(options.access.credentials, Some(dir.path().join("s3.env")));
        assert_eq!(options.access.options["region"], "eu-west-1");
        std::fs::write(&path, format!("{text}[acces]\n")).unwrap();
        let error = Config::read(&path).unwrap_err();
        assert!(error.exit_code() == 78 && error.to_string().contains("acces"), "{error}");
        for wrong in ["s3:///b", "http://a/b", "file://host/dir", "s3://key:secret@b", "s3://b?x=1", "dir"] {
            let config = format!("from = '/srv/bus'\nto = '{wrong}'\n");
            std::fs::write(&path, config).unwrap();
            let error = Config::read(&path).unwrap().options(None).unwrap_err();
            assert_eq!(error.exit_code(), 78, "{wrong}: {error}");
        }
    }
}
