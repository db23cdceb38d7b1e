#!/bin/sh
# Measures chronfs beside its peers and writes docs/peers.md, .json and plots. `bash bench-peers/run.sh --help` tells more.
# Aeron takes part where it can be built: from source, with cmake 3.30 or newer and clang.
set -eu
cd "$(dirname "$0")/.."
features=
if command -v clang >/dev/null && cmake=$(cmake --version 2>/dev/null | sed -n 's/^cmake version //p') &&
    [ "$(printf '3.30\n%s\n' "$cmake" | sort -V | head -n 1)" = 3.30 ]; then
    features=aeron
fi
cargo build --release --bin chron-cli
cargo build --release --manifest-path bench-peers/Cargo.toml --features "$features"
exec "${CARGO_TARGET_DIR:-bench-peers/target}/release/chronfs-bench" \
    --cli "${CARGO_TARGET_DIR:-target}/release/chron-cli" "$@"
