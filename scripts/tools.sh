#!/usr/bin/env bash
# Installs what the demo and the tests use besides the Rust toolchain: fusermount3 (to mount without being root),
# jq and tmux; with --all also what tests are skipped without: strace, faketime, mkfs.xfs, zsh, fish; with --deb what
# builds and checks packages; with --aarch64 a compiler and an emulator for 64-bit ARM. Does nothing if they are installed.
# Debian and Ubuntu: by itself, as root or through sudo; elsewhere it says what is missing.
set -euo pipefail

missing=()
command -v fusermount3 > /dev/null || missing+=(fuse3)
command -v jq > /dev/null || missing+=(jq)
command -v tmux > /dev/null || missing+=(tmux)
if [ "${1:-}" = --all ]; then
    command -v strace > /dev/null || missing+=(strace)
    command -v faketime > /dev/null || missing+=(faketime)
    command -v zsh > /dev/null || missing+=(zsh)
    command -v fish > /dev/null || missing+=(fish)
    PATH="$PATH:/usr/sbin:/sbin" command -v mkfs.xfs > /dev/null || missing+=(xfsprogs)
fi
if [ "${1:-}" = --deb ]; then
    command -v dh > /dev/null || missing+=(debhelper)
    command -v help2man > /dev/null || missing+=(help2man)
    command -v lintian > /dev/null || missing+=(lintian)
    command -v mandoc > /dev/null || missing+=(mandoc)
    command -v mmdebstrap > /dev/null || missing+=(mmdebstrap)
    command -v systemd-nspawn > /dev/null || missing+=(systemd-container)
fi
if [ "${1:-}" = --aarch64 ]; then
    command -v aarch64-linux-gnu-gcc > /dev/null || missing+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
    command -v qemu-aarch64-static > /dev/null || missing+=(qemu-user-static)
fi
[ ${#missing[@]} -gt 0 ] || exit 0

give_up() {
    echo "$0: please install ${missing[*]} first: $1" >&2
    exit 1
}

command -v apt-get > /dev/null || give_up "there is no apt-get"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo > /dev/null || give_up "that needs root"
    as_root=(sudo)
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq >&2 < /dev/null || give_up "apt-get update failed"
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 < /dev/null || give_up "apt-get failed"
