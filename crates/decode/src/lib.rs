//! Decodes the payloads of messages: fixed layouts, SBE, protobuf, FIX, JSON.
//!
//! A [`Schema`] is read from `schema.toml`, which says for each type of message how to read its payload; the page
//! `docs/decode.md` describes it. The schema is compiled once; then [`Schema::json`] appends a payload as JSON, and
//! [`Schema::decode`] passes its values to any [`Sink`], in the order of the table's [`Shape`].
//!
//! ```
//! use chronfs_decode::Schema;
//!
//! let text = r#"
//!     [[message]]
//!     type = 1
//!     name = "quote"
//!     format = "fixed"
//!     fields = [{ name = "id", type = "u32" }, { name = "bid", type = "i64", scale = 2 }]
//! "#;
//! let schema = Schema::parse(text, &mut |name| Err(format!("{name}: no other files here")))?;
//! let mut json = Vec::new();
//! let name = schema.json(1, &[7, 0, 0, 0, 0x39, 0x30, 0, 0, 0, 0, 0, 0], &mut json)?;
//! assert_eq!((name, &json[..]), (Some("quote"), &br#"{"id":7,"bid":123.45}"#[..]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! With the feature `arrow`, `Columns` collects payloads as columns of Arrow, and `Rows` messages as record batches.
//!
//! # Trust
//!
//! Payloads and schemas are treated as hostile: there is no panic, and work and output are bounded by the length of the
//! payload ([`MAX_VALUES`]), however the schema nests. A schema can't name a command or a file outside its directory.

#[cfg(feature = "arrow")]
mod columns;
mod command;
mod error;
mod fix;
mod fixed;
mod json;
mod proto;
mod read;
#[cfg(feature = "arrow")]
mod rows;
mod sbe;
mod schema;
mod sink;

#[cfg(feature = "arrow")]
pub use columns::Columns;
pub use command::Command;
pub use error::{SchemaError, Undecodable};
pub use fixed::{Column, Element, Layout};
pub use read::Number;
#[cfg(feature = "arrow")]
pub use rows::Rows;
pub use schema::{Decode, MAX_FILE, Schema, Table, Time};
pub use sink::{Field, MAX_VALUES, Name, Shape, Sink, Unit};

/// The name of the file beside a queue's own.
pub const SCHEMA_FILE: &str = "schema.toml";
