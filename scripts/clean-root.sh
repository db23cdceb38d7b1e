#!/usr/bin/env bash
# Makes target/clean-root.tar, a clean Debian of this system's release with what scripts/deb-test.sh needs in it, unless it is
# there. Needs root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/tools.sh --deb
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
with=systemd,systemd-sysv,fuse3,jq,zstd,gcc,libc6-dev,pkg-config
if [ ! -e target/clean-root.tar ] || [ "$(cat target/clean-root.with)" != "$with" ]; then
    mkdir -p target
    mapfile -t sources < <(grep -lsw "$codename" /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources})
    mmdebstrap --quiet --variant=minbase --include="$with" "$codename" target/clean-root-new.tar "${sources[@]}"
    mv target/clean-root-new.tar target/clean-root.tar
    echo "$with" > target/clean-root.with
fi
