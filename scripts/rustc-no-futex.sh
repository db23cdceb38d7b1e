#!/usr/bin/env bash
# Compiles the crates of the workspace, and only these, to wait without futexes:
#   RUSTC_WORKSPACE_WRAPPER=$PWD/scripts/rustc-no-futex.sh cargo test --test wake
# In bash: other shells drop variables whose names have a minus, as CARGO_BIN_EXE_chron-cli.
exec "$@" --cfg chronfs_no_futex
