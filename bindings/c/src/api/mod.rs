//! The boundary to C: the functions of the header, and all unsafe code.
//!
//! Invariants, on which each unsafe block and each pointer that C passes as a reference depends; the header states them
//! as its rules:
//! - A handle is NULL, or one that a function of this library has returned and that has not been closed. One thread at
//!   a time uses it, unless its type is shared ([`queue::Queue`] and [`reader::Stopper`], which are `Sync`).
//! - A pointer for a result is NULL, or valid and aligned for a value of its type, whose bytes may be uninitialized.
//! - A structure with options is NULL, or valid and initialized.
//! - A text is NULL, or ends with a zero byte. A payload is NULL, or readable for its length. Neither changes during the
//!   call.
//!
//! `Option<&T>`, `Option<&mut T>` and `Option<Box<T>>` are pointers that may be NULL in C, by Rust's guarantee. NULL where
//! something must be given is a failure, not a crash. What goes out is written whole, or as NULL. No panic passes
//! ([`run`](crate::failure::run)).
#![allow(unsafe_code)]
// Rust calls none of these functions.
#![allow(clippy::not_unsafe_ptr_arg_deref)]

pub mod errors;
pub mod queue;
pub mod reader;
pub mod writer;

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::failure::{Failure, Result, run};

/// A place for a result that the caller may not want.
type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

fn given<T>(pointer: Option<T>, what: &str) -> Result<T> {
    pointer.ok_or_else(|| Failure::invalid(&format!("the {what} is NULL")))
}

fn write<T>(out: Out<'_, T>, value: T) {
    if let Some(out) = out {
        out.write(value);
    }
}

/// Makes a handle; the caller gets NULL if that fails.
fn open<T>(out: Out<'_, Option<Box<T>>>, make: impl FnOnce() -> Result<T>) -> c_int {
    run(|| {
        let out = given(out, "place for the handle")?.write(None);
        *out = Some(Box::new(make()?));
        Ok(0)
    })
}

fn bytes_of<'a>(text: *const c_char, what: &str) -> Result<&'a [u8]> {
    if text.is_null() {
        return Err(Failure::invalid(&format!("the {what} is NULL")));
    }
    // SAFETY: a text ends with a zero byte, and does not change during the call, which is as long as it is used for.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

fn path_of<'a>(path: *const c_char) -> Result<&'a Path> {
    Ok(Path::new(OsStr::from_bytes(bytes_of(path, "path")?)))
}

fn name_of<'a>(name: *const c_char) -> Result<&'a str> {
    let name = bytes_of(name, "name")?;
    std::str::from_utf8(name).map_err(|_| Failure::invalid("the name is not UTF-8"))
}

fn payload_of<'a>(payload: *const c_void, len: usize) -> Result<&'a [u8]> {
    match (payload.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Failure::invalid("the payload is NULL, and its length is not 0")),
        (_, len) if isize::try_from(len).is_err() => Err(Failure::invalid("the payload is longer than any memory")),
        // SAFETY: it is readable for its length, and does not change during the call, which is as long as it is used for.
        (false, len) => Ok(unsafe { std::slice::from_raw_parts(payload.cast(), len) }),
    }
}
