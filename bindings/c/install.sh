#!/usr/bin/env bash
# Builds the library for C and C++, and installs it below PREFIX (default /usr/local): headers, shared and static library,
# and the file by which pkg-config finds them.
#   [DESTDIR=DIR] [LIBDIR=PREFIX/lib] [PROFILE=release] [CHRONFS_BIN=DIR] bash bindings/c/install.sh [PREFIX]
# DESTDIR is put before all paths, for packages; CHRONFS_BIN has the libraries if they are built already; ldconfig is left
# to the caller.
set -euo pipefail

prefix=${1:-/usr/local}
libdir=${LIBDIR:-$prefix/lib}
profile=${PROFILE:-release}
destdir=${DESTDIR:-}
# Relative to where the caller stands.
case $destdir in '' | /*) ;; *) destdir=$PWD/$destdir ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")"

metadata=$(cargo metadata --format-version 1 --no-deps)
version=$(jq -r '.packages[] | select(.name == "chronfs-c").version' <<< "$metadata")
built=${CHRONFS_BIN:-}
if [ -z "$built" ]; then
    cargo build --locked --profile "$profile" --package chronfs-c
    built=$(jq -r .target_directory <<< "$metadata")/${profile/#dev/debug}
fi

install -Dm644 -t "$destdir$prefix/include" include/chronfs.h include/chronfs.hpp
install -Dm644 "$built/libchronfs.so" "$destdir$libdir/libchronfs.so.$version"
ln -sf "libchronfs.so.$version" "$destdir$libdir/libchronfs.so.0"
ln -sf libchronfs.so.0 "$destdir$libdir/libchronfs.so"
install -Dm644 -t "$destdir$libdir" "$built/libchronfs.a"
mkdir -p "$destdir$libdir/pkgconfig"
sed -e "s|@PREFIX@|$prefix|; s|@LIBDIR@|$libdir|; s|@VERSION@|$version|" chronfs.pc.in > "$destdir$libdir/pkgconfig/chronfs.pc"
