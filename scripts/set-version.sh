#!/usr/bin/env bash
# Writes everywhere the version of the next release: scripts/set-version.sh 0.2.0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=${1:?usage: set-version.sh VERSION}
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] || { echo "$0: $version: not of the form 0.2.0" >&2; exit 1; }
old=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)

sed -i '/^\[workspace.package\]/,/^\[/s/^version = .*/version = "'"$version"'"/' Cargo.toml
# What depends on another crate of the workspace.
sed -i -E 's/^([a-z-]+ = \{.*path = "[^"]*", version = )"[^"]*"/\1"'"$version"'"/' Cargo.toml crates/*/Cargo.toml bindings/*/Cargo.toml
# What users write: without the last number.
sed -i 's/^\(.*chronfs = { version = \)"'"${old%.*}"'"/\1"'"${version%.*}"'"/' README.md docs/*.md
sed -i "s/^## Unreleased$/## $version ($(date -u +%F))/" CHANGELOG.md
cat > debian/changelog << EOF
chronfs ($version) unstable; urgency=medium

  * What is new is in CHANGELOG.md.

 -- chronfs developers <chronfs@packages.invalid>  $(date -uR)
EOF
for manifest in Cargo.toml bench-peers/Cargo.toml fuzz/Cargo.toml; do
    cargo metadata --quiet --format-version 1 --manifest-path "$manifest" > /dev/null
done
git diff --stat
