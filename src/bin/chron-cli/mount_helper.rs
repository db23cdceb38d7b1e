//! `mount.chronfs` and `mount.fuse.chronfs`: the same program under the names by which mount(8) calls it, as
//! `SOURCE DIR [-sfnv] [-o OPTIONS]`. Here -f does not mean foreground, but to do everything except mount.
//!
//! With links to chron-cli in /sbin a line in /etc/fstab works:
//! `/srv/bus /mnt/bus fuse.chronfs ro,allow_other,noauto,x-systemd.automount 0 0`

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chronfs::fs::daemon;
use chronfs::fs::mount::{MountError, MountOptions};

use crate::failure::note;
use crate::logger;

const USAGE: &str = "usage: mount.chronfs SOURCE DIR [-sfnv] [-o OPTIONS]";

#[derive(Debug, Default, PartialEq, Eq)]
struct Call {
    source: PathBuf,
    dir: PathBuf,
    options: Vec<String>,
    fake: bool,
    verbose: bool,
    sloppy: bool,
}

pub(crate) fn is_helper_name(argv0: &OsStr) -> bool {
    let name = Path::new(argv0).file_name().unwrap_or_default();
    name == "mount.chronfs" || name == "mount.fuse.chronfs"
}

pub(crate) fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    match parse(words).and_then(mount) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            note(&e.to_string());
            ExitCode::from(match e {
                MountError::Usage(_) => 1,
                MountError::System(_) => 2,
                _ => 32,
            })
        }
    }
}

fn mount(call: Call) -> Result<(), MountError> {
    let mut options = MountOptions::default();
    for words in &call.options {
        if call.sloppy {
            // Options that only other file systems know are ignored.
            words.split(',').for_each(|word| drop(options.add(word)));
        } else {
            options.add(words)?;
        }
    }
    if call.verbose {
        note(&format!("mounting {} at {}", call.source.display(), call.dir.display()));
    }
    logger::install(options.log);
    if call.fake { Ok(()) } else { daemon::run(&call.source, &call.dir, &options, false) }
}

fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Call, MountError> {
    let usage = |what: String| MountError::Usage(format!("{what}; {USAGE}"));
    let mut call = Call::default();
    let mut places = Vec::new();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy().into_owned();
        let Some(flags) = text.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            places.push(PathBuf::from(word));
            continue;
        };
        for (at, flag) in flags.char_indices() {
            match flag {
                'f' => call.fake = true,
                'v' => call.verbose = true,
                's' => call.sloppy = true,
                // No mtab: there is none these days.
                'n' => {}
                // -o takes the rest of the word or the next word; -t and -N likewise, and say nothing new.
                'o' | 't' | 'N' => {
                    let rest = &flags[at + 1..];
                    let value = if rest.is_empty() {
                        words.next().map(|w| w.to_string_lossy().into_owned())
                    } else {
                        Some(rest.to_owned())
                    };
                    let value = value.ok_or_else(|| usage(format!("-{flag} needs a value")))?;
                    if flag == 'o' {
                        call.options.push(value);
                    }
                    break;
                }
                _ => return Err(usage(format!("unknown option -{flag}"))),
            }
        }
    }
    let Ok([source, dir]) = <[PathBuf; 2]>::try_from(places) else {
        return Err(usage("a source and a directory are required".to_owned()));
    };
    Ok(Call { source, dir, ..call })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &[&str]) -> Result<Call, MountError> {
        parse(words.iter().map(OsString::from))
    }

    #[test]
    fn mount_8_puts_its_flags_after_source_and_directory() {
        let call = parse_words(&["/srv/bus", "/mnt/bus", "-sfv", "-o", "ro,noauto", "-t", "fuse.chronfs"]).unwrap();
        assert_eq!((call.source, call.dir), (PathBuf::from("/srv/bus"), PathBuf::from("/mnt/bus")));
        assert_eq!(call.options, ["ro,noauto"]);
        assert!(call.fake && call.verbose && call.sloppy);
    }

    #[test]
    fn wrong_calls_are_refused() {
        for words in [&["/srv/bus"][..], &["/a", "/b", "/c"], &["/a", "/b", "-o"], &["/a", "/b", "-x"]] {
            assert!(parse_words(words).is_err(), "{words:?}");
        }
    }
}
