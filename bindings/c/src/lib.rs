//! chronfs for C and C++: the functions of `include/chronfs.h`, which `cbindgen` makes from this crate
//! (`tests/header.rs` compares it), and which `include/chronfs.hpp` presents as C++ classes.
//!
//! `api` is the boundary: pointers come in, numbers go out, and all unsafe code is there. The rest is ordinary Rust. A
//! payload lies in a mapping that its reader keeps ([`reader::Reader`]), so nothing is unmapped under a pointer that is
//! still valid by the rules of the header.

pub mod api;
pub mod entry;
pub mod failure;
pub mod options;
pub mod reader;
