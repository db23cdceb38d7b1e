//! Why a mount failed or ended.

/// Why a mount or unmount failed. Each text is one line, with the path, the cause and the remedy where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The command line is wrong: an unknown option, paths that can't be mounted on one another.
    #[error("{0}")]
    Usage(String),
    /// The system refused: no FUSE device, no permission.
    #[error("{0}")]
    System(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}
