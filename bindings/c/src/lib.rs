//! chronfs for C and C++.
