//! `append.packets`: each write(2) is one message.

use crate::fs::errno::{Errno, Result};
use crate::fs::files::append::target::Target;
use crate::fs::tree::handles::Handle;
use crate::view::DEFAULT_TYPE;

pub(super) struct PacketsHandle {
    pub(super) target: Target,
    /// A write of this many bytes may be part of a larger one.
    pub(super) max_write: usize,
}

impl Handle for PacketsHandle {
    fn write(&self, data: &[u8]) -> Result<usize> {
        if data.len() > self.max_write {
            return Err(Errno::EMSGSIZE.because("too long for one write; append.bin takes longer messages"));
        }
        self.target.with_writer(|writer| writer.append(DEFAULT_TYPE, data))??;
        Ok(data.len())
    }

    fn fsync(&self) -> Result<()> {
        self.target.sync()
    }
}
