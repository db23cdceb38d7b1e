#!/usr/bin/env bash
# Builds the library for C and C++, and installs it below PREFIX (default /usr/local): headers, shared and static library,
# and the file by which pkg-config finds them.
#   [DESTDIR=DIR] [LIBDIR=PREFIX/lib] [PROFILE=release] bash bindings/c/install.sh [PREFIX]
# DESTDIR is put before all paths, for packages; ldconfig is left to the caller.
set -euo pipefail

prefix=${1:-/usr/local}
libdir=${LIBDIR:-$prefix/lib}
profile=${PROFILE:-release}
destdir=${DESTDIR:-}
# Relative to where the caller stands.
case $destdir in '' | /*) ;; *) destdir=$PWD/$destdir ;; esac
cd "$(dirname "${BASH_SOURCE[0]}")"

cargo build --locked --profile "$profile" --package chronfs-c
metadata=$(cargo metadata --format-version 1 --no-deps)
version=$(jq -r '.packages[] | select(.name == "chronfs-c").version' <<< "$metadata")
built=$(jq -r .target_directory <<< "$metadata")/${profile/#dev/debug}

install -Dm644 -t "$destdir$prefix/include" include/chronfs.h include/chronfs.hpp
install -Dm644 "$built/libchronfs.so" "$destdir$libdir/libchronfs.so.$version"
ln -sf "libchronfs.so.$version" "$destdir$libdir/libchronfs.so.0"
ln -sf libchronfs.so.0 "$destdir$libdir/libchronfs.so"
install -Dm644 -t "$destdir$libdir" "$built/libchronfs.a"
mkdir -p "$destdir$libdir/pkgconfig"
sed -e "s|@PREFIX@|$prefix|; s|@LIBDIR@|$libdir|; s|@VERSION@|$version|" chronfs.pc.in > "$destdir$libdir/pkgconfig/chronfs.pc"
