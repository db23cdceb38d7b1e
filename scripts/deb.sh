#!/usr/bin/env bash
# Builds Debian packages from the release build into target/deb: those that are named, or all.
#   scripts/deb.sh [PACKAGE...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/tools.sh --deb
version=$(cargo metadata --format-version 1 --no-deps | jq -r '.packages[] | select(.name == "chronfs").version')
if [ "$(dpkg-parsechangelog -S Version)" != "$version" ]; then
    echo "$0: debian/changelog does not begin with version $version of Cargo.toml; scripts/set-version.sh writes both" >&2
    exit 1
fi
all=$(sed -n 's/^Package: //p' debian/control)
for package in "$@"; do
    grep -qx "$package" <<< "$all" || { echo "$0: $package: no such package; there are" $all >&2; exit 1; }
done
DH_OPTIONS=''
for package in $all; do
    if [ $# -gt 0 ] && [[ " $* " != *" $package "* ]]; then DH_OPTIONS+=" -N$package"; fi
done
export DH_OPTIONS DEBS=target/deb
rm -rf "$DEBS"
mkdir -p "$DEBS"
debian/rules clean
debian/rules binary
debian/rules clean
ls "$DEBS"
