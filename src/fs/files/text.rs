//! Short texts made on the spot: rendered when read from the start, then kept, so that one pass over the file sees
//! one state; reading from the start again (as `watch` and sysfs users do) renders again.

use std::sync::Mutex;

use crate::fs::errno::Result;
use crate::fs::handles::{Handle, Progress};
use crate::fs::lock;

/// An open file whose whole text `render` gives.
pub(super) struct TextHandle<F> {
    render: F,
    text: Mutex<Option<Vec<u8>>>,
}

impl<F: Fn() -> Result<Vec<u8>> + Send + Sync> TextHandle<F> {
    pub(super) fn new(render: F) -> Self {
        Self { render, text: Mutex::new(None) }
    }
}

impl<F: Fn() -> Result<Vec<u8>> + Send + Sync> Handle for TextHandle<F> {
    fn read(&self, offset: u64, size: usize, out: &mut Vec<u8>) -> Result<Progress> {
        let mut text = lock(&self.text);
        if offset == 0 || text.is_none() {
            *text = Some((self.render)()?);
        }
        let text = text.as_deref().unwrap_or_default();
        let rest = usize::try_from(offset).ok().and_then(|offset| text.get(offset..)).unwrap_or_default();
        out.extend_from_slice(&rest[..rest.len().min(size)]);
        Ok(Progress::Done)
    }
}
