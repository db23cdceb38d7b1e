#!/bin/sh
# As RUSTC_WORKSPACE_WRAPPER: compiles this crate, and not again what it depends on, as if there were no futexes.
exec "$@" --cfg chronfs_no_futex
