//! The words after `-o`: which the mount obeys, which it accepts because mount(8), fstab and systemd pass them on.

use crate::queue::Settings;
use crate::report::parse_size;

use super::mount::MountError;

/// How to mount.
///
/// ```
/// use chronfs::fs::mount::MountOptions;
///
/// let options = MountOptions::parse("ro,allow_other,noauto,x-systemd.automount")?;
/// assert!(options.read_only && options.allow_other);
/// assert!(MountOptions::parse("readonly").is_err());
/// # Ok::<(), chronfs::fs::mount::MountError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Refuse every change with EROFS.
    pub read_only: bool,
    /// Let other users in; what they may do is decided by the modes of the backing files.
    pub allow_other: bool,
    /// Let root in beside the user who mounts.
    pub allow_root: bool,
    /// Refuse to execute files of the mount.
    pub noexec: bool,
    /// What `findmnt` shows as the source; the root's path if not given.
    pub fs_name: Option<String>,
    /// Threads that serve requests, 1 to 16.
    pub threads: usize,
    /// The settings of queues that the mount makes.
    pub settings: Settings,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_other: false,
            allow_root: false,
            noexec: false,
            fs_name: None,
            threads: 4,
            settings: Settings::default(),
        }
    }
}

/// Words that are true of every mount here, or are meant for mount(8), fstab or systemd.
const ACCEPTED: &[&str] = &[
    "async",
    "atime",
    "auto",
    "auto_unmount",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "fail",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "nonempty",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosymfollow",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "silent",
    "strictatime",
    "suid",
    "sync",
    "user",
    "users",
];

impl MountOptions {
    /// Parses the value of one `-o`: words separated by commas, the later of two contradicting ones counts.
    ///
    /// # Errors
    /// [`MountError::Usage`] that names the word.
    pub fn parse(words: &str) -> Result<Self, MountError> {
        let mut options = Self::default();
        options.add(words)?;
        Ok(options)
    }

    /// Adds the value of a further `-o`.
    ///
    /// # Errors
    /// As [`MountOptions::parse`].
    pub fn add(&mut self, words: &str) -> Result<(), MountError> {
        words.split(',').map(str::trim).filter(|word| !word.is_empty()).try_for_each(|word| self.add_word(word))
    }

    fn add_word(&mut self, word: &str) -> Result<(), MountError> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("allow_other", None) => self.allow_other = true,
            ("allow_root", None) => self.allow_root = true,
            ("noexec" | "user" | "users", None) => self.noexec = true,
            ("exec" | "defaults", None) => self.noexec = false,
            ("fsname", Some(value)) => self.fs_name = Some(value.to_owned()),
            ("threads", Some(value)) => {
                self.threads = value
                    .parse()
                    .ok()
                    .filter(|threads| (1..=16).contains(threads))
                    .ok_or_else(|| MountError::Usage(format!("option threads={value}: must be 1 to 16")))?;
            }
            ("segment_size", Some(value)) => {
                let wrong = |error: &dyn std::fmt::Display| MountError::Usage(format!("option segment_size: {error}"));
                let size = parse_size(value).map_err(|error| wrong(&error))?;
                // Too large is too large, by how much does not matter.
                let segment_size = u32::try_from(size).unwrap_or(u32::MAX);
                let settings = Settings { segment_size, ..self.settings };
                settings.validate().map_err(|error| wrong(&error))?;
                self.settings = settings;
            }
            ("remount", None) => {
                let text = "a mount can't be changed by remount; unmount it and mount it again";
                return Err(MountError::Usage(text.to_owned()));
            }
            ("subtype" | "comment" | "user" | "uhelper" | "helper", Some(_)) => {}
            ("context" | "fscontext" | "defcontext" | "rootcontext" | "max_read", Some(_)) => {}
            (name, _) if ["x-", "X-", "_"].iter().any(|prefix| name.starts_with(prefix)) => {}
            (name, None) if ACCEPTED.contains(&name) => {}
            _ => return Err(MountError::Usage(format!("unknown mount option {word:?}"))),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_fstab_line_is_understood() {
        let options = MountOptions::parse(
            "rw,noauto,nofail,_netdev,user,x-systemd.automount,x-systemd.idle-timeout=60,comment=bus,ro,allow_other",
        )
        .unwrap();
        assert!(options.read_only && options.allow_other && options.noexec);
        assert_eq!(MountOptions::parse("").unwrap(), MountOptions::default());
        assert_eq!(MountOptions::parse("defaults,,rw").unwrap(), MountOptions::default());
    }

    #[test]
    fn the_last_word_counts() {
        assert!(!MountOptions::parse("ro,rw").unwrap().read_only);
        let mut options = MountOptions::parse("rw").unwrap();
        options.add("ro").unwrap();
        assert!(options.read_only);
    }

    #[test]
    fn words_that_mean_nothing_are_named() {
        for word in [
            "readonly",
            "threads=0",
            "threads=many",
            "segment_size=1",
            "segment_size=x",
            "segment_size=8GiB",
            "ro=1",
            "blksize=1",
            "remount",
        ] {
            let error = MountOptions::parse(word).unwrap_err().to_string();
            assert!(error.contains(word.split('=').next().unwrap()), "{error}");
        }
        assert_eq!(MountOptions::parse("segment_size=1MiB").unwrap().settings.segment_size, 1 << 20);
    }
}
