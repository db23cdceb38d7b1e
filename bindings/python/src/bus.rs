//! A bus: which queues there are below a directory.

use std::path::{Path, PathBuf};

use chronfs::bus::{Endpoint, RouterDiscovery};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::OrRaise;

/// A queue that was found.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    endpoint: Endpoint,
}

/// The queues below a directory, in the order of their paths.
pub(crate) fn below(root: &Path) -> chronfs::Result<Vec<Found>> {
    let mut discovery = RouterDiscovery::new(root)?;
    discovery.poll()?;
    Ok(discovery.endpoints().map(|(path, endpoint)| Found { path: path.to_path_buf(), endpoint: *endpoint }).collect())
}

/// The queues below a directory, in the order of their paths, each as `{"path", "ready", "lease"}`: whether it is marked
/// as ready, and the state of its lease ("live", "expired", "unknown", or None without one).
#[pyfunction]
#[pyo3(signature = (root, /))]
pub(crate) fn discover(py: Python<'_>, root: PathBuf) -> PyResult<Bound<'_, PyList>> {
    let found = py.detach(|| below(&root)).or_raise(py)?;
    let list = PyList::empty(py);
    for Found { path, endpoint } in found {
        let dict = PyDict::new(py);
        dict.set_item("path", path)?;
        dict.set_item("ready", endpoint.ready)?;
        dict.set_item("lease", endpoint.lease.map(|state| state.as_str()))?;
        list.append(dict)?;
    }
    Ok(list)
}
