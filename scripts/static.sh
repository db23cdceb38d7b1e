#!/usr/bin/env bash
# Builds chron-cli as one file that needs no library and runs on any Linux of this processor, in target/static; then uses
# it where there is nothing but it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

triple=$(uname -m)-unknown-linux-musl
rustup target add "$triple"
# musl's own allocator is slow, which matters to none of the hot paths: they do not allocate.
cargo build --release --locked --features decode --bin chron-cli --target "$triple"
target=$(cargo metadata --format-version 1 --no-deps | jq -r .target_directory)
mkdir -p target/static
strip -o target/static/chron-cli "$target/$triple/release/chron-cli"
if [[ $(readelf --program-headers target/static/chron-cli) == *INTERP* ]]; then
    echo "$0: target/static/chron-cli needs a loader" >&2
    exit 1
fi

# An empty root, as a plain user would have one.
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
cp target/static/chron-cli "$empty"
inside() { unshare --user --map-root-user --root "$empty" /chron-cli "$@"; }
inside send /bus/ticks hello
[ "$(inside tail --format txt /bus/ticks)" = hello ]
inside doctor --deep /bus
ls -l target/static
