//! The words after `-o`: those that take effect, and those that are accepted because mount(8), fstab and systemd pass
//! them on.

use std::path::Path;

use log::LevelFilter;

use crate::queue::Settings;
use crate::settings;

use crate::fs::error::MountError;

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
    /// Give other users access. In root's mount they may do what they could do without it; in an ordinary user's mount
    /// the modes of the backing files decide.
    pub allow_other: bool,
    /// Give root access, beside the user who mounts.
    pub allow_root: bool,
    /// Show file systems mounted below the root too. Another user's file system may block the mount.
    pub cross_mounts: bool,
    /// Forbid executing files of the mount.
    pub noexec: bool,
    /// Follow no symbolic links in the mount (`first`, `last`, `at/…`). Requires root.
    pub nosymfollow: bool,
    /// SELinux labels (`context=…` and the like), passed to the kernel, which accepts them where SELinux is enabled.
    pub labels: Vec<String>,
    /// What `findmnt` shows as the source; the root's path if not given.
    pub fs_name: Option<String>,
    /// Threads that serve requests, 1 to 16.
    pub threads: usize,
    /// Settings of queues that the mount creates, by their names and values in [`settings::change`]; for the others see
    /// [`settings::by_the_way`].
    pub settings: Vec<(&'static str, String)>,
    /// The lowest level that is logged, to the logger of the `log` crate and in `.chronfs/log`.
    pub log: LevelFilter,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_other: false,
            allow_root: false,
            cross_mounts: false,
            noexec: false,
            nosymfollow: false,
            labels: Vec::new(),
            fs_name: None,
            threads: 4,
            settings: Vec::new(),
            log: LevelFilter::Warn,
        }
    }
}

/// Words that hold for every mount, that change nothing, or that are meant for mount(8), fstab or systemd. None of them
/// asks for anything that is not supported.
const ACCEPTED: &[&str] = &[
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "fail",
    "group",
    "iversion",
    "lazytime",
    "loud",
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
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "silent",
    "strictatime",
    "suid",
    "symfollow",
    "user",
    "users",
];

/// Words of mount(8) that ask for unsupported behaviour, and why it is unsupported.
const REFUSED: &[(&str, &str)] = &[
    ("auto_unmount", "not supported; the next mount replaces a dead one, and 'chron-cli umount' removes it"),
    ("dirsync", "not supported; fsync(2) makes appended messages durable, and a newly created queue too"),
    ("mand", "not supported; Linux no longer has mandatory locks"),
    ("remount", "a mount can't be changed by remount; unmount it and mount it again"),
    ("sync", "not supported; fsync(2) makes appended messages durable"),
];

/// The values of `log=`.
pub const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

fn log_level(word: &str) -> Option<LevelFilter> {
    LOG_LEVELS.contains(&word).then(|| word.parse().ok())?
}

/// The name of the setting that an option like `retain_bytes=` is for.
fn setting(option: &str) -> Option<&'static str> {
    settings::NAMES.into_iter().find(|name| name.replace('-', "_") == option)
}

impl MountOptions {
    /// Parses the value of one `-o`: words separated by commas; of two that contradict, the later one counts.
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
        // A label may contain commas, and is then quoted.
        let mut is_quoted = false;
        let is_end = |c: char| {
            is_quoted ^= c == '"';
            c == ',' && !is_quoted
        };
        words.split(is_end).map(str::trim).filter(|word| !word.is_empty()).try_for_each(|word| self.add_word(word))
    }

    /// The settings of queues that are created below this directory.
    ///
    /// # Errors
    /// [`MountError::Usage`] if they make no sense together.
    pub(crate) fn settings_below(&self, root: &Path) -> Result<Settings, MountError> {
        let mut all = settings::by_the_way(root);
        let mut changes = self.settings.iter();
        changes.try_for_each(|(name, value)| settings::change(&mut all, name, value)).map_err(MountError::Usage)?;
        all.validate().map_err(|error| MountError::Usage(format!("options: {error}")))?;
        Ok(all)
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
            ("cross_mounts", None) => self.cross_mounts = true,
            ("noexec" | "user" | "users", None) => self.noexec = true,
            ("exec" | "defaults", None) => self.noexec = false,
            ("nosymfollow", None) => self.nosymfollow = true,
            ("symfollow", None) => self.nosymfollow = false,
            ("fsname", Some(value)) => self.fs_name = Some(value.to_owned()),
            ("threads", Some(value)) => {
                self.threads = value
                    .parse()
                    .ok()
                    .filter(|threads| (1..=16).contains(threads))
                    .ok_or_else(|| MountError::Usage(format!("option threads={value}: must be 1 to 16")))?;
            }
            ("log", Some(value)) => {
                self.log = log_level(value)
                    .ok_or_else(|| MountError::Usage(format!("option log={value}: must be one of {LOG_LEVELS:?}")))?;
            }
            ("subtype" | "comment" | "user" | "uhelper" | "helper", Some(_)) => {}
            ("context" | "fscontext" | "defcontext" | "rootcontext", Some(_)) => self.labels.push(word.to_owned()),
            (name, _) if ["x-", "X-", "_"].iter().any(|prefix| name.starts_with(prefix)) => {}
            (name, None) if ACCEPTED.contains(&name) => {}
            (option, Some(value)) if setting(option).is_some() => {
                let wrong = |error: &dyn std::fmt::Display| MountError::Usage(format!("option {option}: {error}"));
                let name = setting(option).unwrap_or_default();
                let mut alone = Settings::default();
                settings::change(&mut alone, name, value).map_err(|error| wrong(&error))?;
                // What is wrong only beside another option is found at the mount.
                if name != "max-bytes" {
                    alone.validate().map_err(|error| wrong(&error))?;
                }
                self.settings.push((name, value.to_owned()));
            }
            _ => {
                let refused = REFUSED.iter().find(|(refused, _)| *refused == word);
                return Err(MountError::Usage(refused.map_or_else(
                    || format!("unknown mount option {word:?}"),
                    |(name, why)| format!("mount option {name}: {why}"),
                )));
            }
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
    fn labels_are_for_the_kernel_with_their_commas() {
        let options = MountOptions::parse("ro,context=\"u:r:t:s0:c1,c2\",nosymfollow,fscontext=u:r:t").unwrap();
        assert!(options.read_only && options.nosymfollow);
        assert_eq!(options.labels, ["context=\"u:r:t:s0:c1,c2\"", "fscontext=u:r:t"]);
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
            "log=loud",
            "log=off",
            "segment_size=1",
            "segment_size=x",
            "segment_size=8GiB",
            "retain_bytes=1GB",
            "roll_every=1",
            "payload_align=9",
            "ro=1",
            "blksize=1",
            "remount",
            "sync",
            "dirsync",
            "mand",
            "auto_unmount",
            "max_read=4096",
        ] {
            let error = MountOptions::parse(word).unwrap_err().to_string();
            assert!(error.contains(word.split('=').next().unwrap()), "{error}");
        }
        assert_eq!(MountOptions::parse("log=debug").unwrap().log, LevelFilter::Debug);
    }

    #[test]
    fn all_settings_of_new_queues_are_options() {
        let root = Path::new("/");
        let settings = |words| MountOptions::parse(words).unwrap().settings_below(root);
        let words = "segment_size=1MiB,max_bytes=2GiB,retain_bytes=1GiB,retain_age=7d,retain_segments=5,reader_ttl=1h,\
             max_lag=1GiB,roll_every=day,payload_align=64";
        let found = settings::list(&settings(words).unwrap());
        assert_eq!(found, ["1MiB", "2GiB", "1GiB", "7d", "5", "1h", "1GiB", "1d", "64"]);
        assert!(settings("").unwrap().has_retention(), "nobody has decided to fill the disk");
        assert!(!settings("retain_bytes=1GiB,retain_bytes=none").unwrap().has_retention());
        assert!(settings("max_bytes=1MiB,segment_size=1MiB").is_ok());
        assert!(matches!(settings("max_bytes=1MiB,segment_size=2MiB"), Err(MountError::Usage(_))));
    }
}
