#!/usr/bin/env bash
# Builds packages for Fedora, openSUSE and their like from the release build into target/rpm, with rpmbuild and help2man.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v rpmbuild > /dev/null || { echo "$0: please install rpmbuild first (Debian: rpm)" >&2; exit 1; }
command -v help2man > /dev/null || { echo "$0: please install help2man first" >&2; exit 1; }
cargo build --release --locked --features decode --bin chron-cli
cargo build --release --locked --package chronfs-export --bins
metadata=$(cargo metadata --format-version 1 --no-deps)
version=$(jq -r '.packages[] | select(.name == "chronfs").version' <<< "$metadata")
release=$(jq -r .target_directory <<< "$metadata")/release
program=$release/chron-cli

rm -rf target/rpm
files=$PWD/target/rpm/files
put() { install -Dm644 "$1" "$files/$2"; }
install -D --strip -t "$files/usr/bin" "$program" "$release/chron-export"
mkdir -p "$files/usr/sbin" "$files/var/lib/chronfs" "$files/usr/share/man/man1"
ln -s ../bin/chron-cli "$files/usr/sbin/mount.chronfs"
ln -s ../bin/chron-cli "$files/usr/sbin/mount.fuse.chronfs"
put contrib/chronfs.service usr/lib/systemd/system/chronfs.service
put contrib/chronfs.tmpfiles usr/lib/tmpfiles.d/chronfs.conf
"$program" completions bash | put /dev/stdin usr/share/bash-completion/completions/chron-cli
"$program" completions zsh | put /dev/stdin usr/share/zsh/site-functions/_chron-cli
"$program" completions fish | put /dev/stdin usr/share/fish/vendor_completions.d/chron-cli.fish
"$program" man --all "$files/usr/share/man/man1"
help2man --no-info --name 'export message queues' --include man/chron-export.h2m "$release/chron-export" |
    put /dev/stdin usr/share/man/man1/chron-export.1
put man/chronfs.5 usr/share/man/man5/chronfs.5
put man/mount.chronfs.8 usr/share/man/man8/mount.chronfs.8
find "$files/usr/share/man" -type f -exec gzip -9n {} +

mkdir -p target/rpm/build
cp LICENSE-MIT LICENSE-APACHE target/rpm/build
rpmbuild --quiet -bb --define "_topdir $PWD/target/rpm/top" --define "_builddir $PWD/target/rpm/build" \
    --define "_rpmdir $PWD/target/rpm" --define "_rpmfilename %%{NAME}-%%{VERSION}.%%{ARCH}.rpm" \
    --define "chronfs_version $version" --define "chronfs_files $files" contrib/chronfs.spec
rm -r target/rpm/build target/rpm/top
rpm -qp --requires target/rpm/*.rpm
ls -l target/rpm/*.rpm
