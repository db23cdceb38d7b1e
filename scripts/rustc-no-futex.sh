#!/bin/sh
# Compiles the crates of the workspace, and only these, to wait without futexes:
#   RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/rustc-no-futex.sh cargo test --test wake
exec "$@" --cfg chronfs_no_futex
