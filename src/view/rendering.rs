//! How a view or a stream shows entries: a format and, where payloads are decoded, the schema.

use super::{Format, len_u64, render, rendered_len};
use crate::queue::Entry;

/// How entries are shown. It never changes: the same entry always has the same bytes.
#[derive(Debug, Clone)]
pub struct Rendering {
    format: Format,
    #[cfg(feature = "decode")]
    schema: Option<std::sync::Arc<chronfs_decode::Schema>>,
}

impl From<Format> for Rendering {
    fn from(format: Format) -> Self {
        Self {
            format,
            #[cfg(feature = "decode")]
            schema: None,
        }
    }
}

#[cfg(feature = "decode")]
impl From<std::sync::Arc<chronfs_decode::Schema>> for Rendering {
    /// As jsonl, with payloads decoded.
    fn from(schema: std::sync::Arc<chronfs_decode::Schema>) -> Self {
        Self { format: Format::Jsonl, schema: Some(schema) }
    }
}

impl Rendering {
    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether the indexes of segments have its lengths: they know no decoded payloads.
    pub(super) fn is_indexed(&self) -> bool {
        #[cfg(feature = "decode")]
        return self.schema.is_none();
        #[cfg(not(feature = "decode"))]
        true
    }

    /// As [`render`].
    pub(super) fn render(&self, entry: &Entry<'_>, out: &mut Vec<u8>) {
        #[cfg(feature = "decode")]
        if let Some(schema) = &self.schema {
            return super::render_decoded(entry, None, &mut schema.as_ref(), out);
        }
        render(self.format, entry, None, out);
    }

    /// The length of what [`Rendering::render`] appends.
    pub(super) fn len(&self, entry: &Entry<'_>) -> u64 {
        #[cfg(feature = "decode")]
        if self.schema.is_some() {
            let mut line = Vec::new();
            self.render(entry, &mut line);
            return len_u64(line.len());
        }
        len_u64(rendered_len(self.format, entry, None))
    }
}
