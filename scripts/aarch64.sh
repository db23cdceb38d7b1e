#!/usr/bin/env bash
# Builds for 64-bit ARM and runs the tests of the engine, the views and the command under qemu's user emulation, or those
# that are named as for cargo test. What that can't prove: docs/platforms.md. Needs root once, to tell the kernel what
# runs such programs (binfmt_misc).
#   scripts/aarch64.sh [--lib | --test NAME | -- FILTER]...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/tools.sh --aarch64
triple=aarch64-unknown-linux-gnu
rustup target list --installed | grep -qx "$triple" || rustup target add "$triple"

# The tests start chron-cli as a program: the kernel must know the emulator. F opens it now, so that it is found in any
# mount namespace.
formats=/proc/sys/fs/binfmt_misc
[ -e "$formats/register" ] || mount -t binfmt_misc none "$formats"
if [ ! -e "$formats/qemu-aarch64" ]; then
    printf '%s' ':qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:F' > "$formats/register"
fi
export QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export RUSTFLAGS="${RUSTFLAGS-}"

if [ $# -eq 0 ]; then
    set -- --lib
    for name in cli copy damage fan_in format growth independent queue readers retention reuse settings times view wake writer; do
        set -- "$@" --test "$name"
    done
fi
cargo test --locked --target "$triple" --no-fail-fast "$@"
