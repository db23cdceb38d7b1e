//! chronfs for Python: the module `chronfs._chronfs`, which the package `chronfs` presents.
//!
//! Classes are frozen and share their state behind a lock (`shared.rs`), so that any thread may call anything. A payload
//! is lent from the mapping (`memory.rs`): the object that lends it keeps the mapping, and nothing is unmapped under it.

mod arrow;
mod batch;
mod bus;
mod core;
#[cfg(feature = "decode")]
mod decoded;
mod errors;
mod inspect;
mod memory;
mod merge;
mod message;
mod options;
mod queue;
mod reader;
mod scan;
mod shared;
mod writer;

use pyo3::prelude::*;

/// The classes and functions of the package `chronfs`.
#[pymodule(gil_used = true)]
fn _chronfs(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<queue::Queue>()?;
    module.add_class::<writer::Writer>()?;
    module.add_class::<reader::Reader>()?;
    module.add_class::<scan::Scan>()?;
    module.add_class::<scan::Messages>()?;
    #[cfg(feature = "decode")]
    module.add_class::<decoded::Decoded>()?;
    module.add_class::<batch::Batch>()?;
    module.add_class::<batch::Batches>()?;
    module.add_class::<message::Message>()?;
    module.add_class::<message::Gap>()?;
    module.add_class::<memory::Memory>()?;
    module.add_class::<merge::Merge>()?;
    module.add_function(wrap_pyfunction!(merge::merge, module)?)?;
    module.add_function(wrap_pyfunction!(bus::discover, module)?)?;
    module.add_function(wrap_pyfunction!(memory::kept, module)?)?;
    module.add_function(wrap_pyfunction!(memory::warn_when_kept, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))
}
