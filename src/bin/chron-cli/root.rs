//! Where queues are looked for if a path does not say it: `$CHRONFS_ROOT`.

use std::path::{Component, Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};

/// What commands about many queues search: `$CHRONFS_ROOT`, else the current directory.
pub(crate) fn root() -> PathBuf {
    variable().unwrap_or_else(|| PathBuf::from("."))
}

/// Takes a queue's path. A name that does not exist here is looked up in `$CHRONFS_ROOT`.
pub(crate) fn queue_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| resolve(path, variable()))
}

fn variable() -> Option<PathBuf> {
    std::env::var_os("CHRONFS_ROOT").filter(|root| !root.is_empty()).map(PathBuf::from)
}

fn resolve(path: PathBuf, root: Option<PathBuf>) -> Result<PathBuf, String> {
    let is_name = matches!(path.components().next(), Some(Component::Normal(_)));
    match root.filter(|root| is_name && path != *root && is_missing(&path)) {
        Some(root) if is_missing(&root) => {
            let root = root.display();
            Err(format!("CHRONFS_ROOT is {root}, and there is no such directory; correct it, or: mkdir -p {root}"))
        }
        Some(root) => Ok(root.join(path)),
        None => Ok(path),
    }
}

fn is_missing(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_missing_here_are_looked_up_in_the_root() {
        let root = || Some(PathBuf::from("/usr"));
        for (path, expected) in [
            ("ticks", "/usr/ticks"),
            ("eu/ticks", "/usr/eu/ticks"),
            ("./ticks", "./ticks"),
            ("../ticks", "../ticks"),
            ("/ticks", "/ticks"),
            ("src", "src"),
            (".", "."),
        ] {
            assert_eq!(resolve(path.into(), root()), Ok(expected.into()));
        }
        assert_eq!(resolve("ticks".into(), None), Ok("ticks".into()));
        assert_eq!(resolve("bus".into(), Some("bus".into())), Ok("bus".into()), "the root itself");
    }
}
