//! Asking for the last failure, and what concerns the library as a whole.

use std::ffi::{CString, c_char, c_int};

use crate::failure::{last, run, run_silently};

/// The library's version, for example "0.1.0". A constant.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The code of the last failure in this thread, one of CHRONFS_ERROR_IO, ...; 0 if there was none. A success does not
/// change it.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_error_code() -> c_int {
    last(|failure| failure.code as c_int).unwrap_or(0)
}

/// What has failed, and why, in UTF-8, with the path that it concerns; "" if nothing has. It belongs to the library and is
/// valid until the next failure in this thread, or its end.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_error_message() -> *const c_char {
    last(|failure| failure.text.as_ptr()).unwrap_or(c"".as_ptr())
}

/// The file or directory that the last failure in this thread concerns; NULL if it concerns none. Valid as long as the
/// message.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_error_path() -> *const c_char {
    last(|failure| failure.path.as_ref().map(|path| path.as_ptr())).flatten().unwrap_or(std::ptr::null())
}

/// The errno of the system call that failed, if the last failure in this thread is CHRONFS_ERROR_IO; else 0.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_error_errno() -> c_int {
    last(|failure| failure.errno).unwrap_or(0)
}

/// The process that holds what the call needs, if the last failure in this thread is CHRONFS_ERROR_BUSY and it can be
/// identified; else 0.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_error_pid() -> u32 {
    last(|failure| failure.pid).unwrap_or(0)
}

/// Lets SIGBUS kill the process again. By default, opening a reader or writer installs a handler for the addresses of the
/// library's mappings, so that a file that is truncated under them is an error. To be called before anything is opened.
///
/// Returns 1; 0 if the handler is installed already, and stays.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_disable_sigbus_handler() -> c_int {
    run(|| Ok(c_int::from(engine::queue::disable_sigbus_handler())))
}

/// Releases a text that a function has returned as the caller's. NULL: nothing.
#[unsafe(no_mangle)]
pub extern "C" fn chronfs_string_free(text: *mut c_char) {
    run_silently(|| {
        if !text.is_null() {
            // SAFETY: this library has made it by `CString::into_raw`; the caller has not released it and won't use it.
            drop(unsafe { CString::from_raw(text) });
        }
    });
}
