//! chronfs for Python.
