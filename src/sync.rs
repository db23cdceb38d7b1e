//! The one place that atomics come from, so that a model checker can stand in for `std`.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, compiler_fence, fence};
