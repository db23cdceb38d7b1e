#!/bin/sh
# Measures chronfs beside its peers and writes docs/performance.md, .json and plots. `bash bench/run.sh --help` tells more.
# CHRONFS_BENCH_FEATURES=aeron adds Aeron: it is built from source, with cmake 3.30 or newer and clang.
set -eu
cd "$(dirname "$0")/.."
cargo build --release --bin chron-cli
cargo build --release --manifest-path bench/Cargo.toml --features "${CHRONFS_BENCH_FEATURES:-}"
exec "${CARGO_TARGET_DIR:-bench/target}/release/chronfs-bench" --cli "${CARGO_TARGET_DIR:-target}/release/chron-cli" "$@"
