#!/usr/bin/env bash
# Checks the packages in target/deb (scripts/deb.sh), then installs chronfs, chronfs-export and the library for C into a
# clean Debian, boots that as a container and uses them as root and as a plain user. Needs root. The clean system is kept
# as target/clean-root.tar.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/clean-root.sh
lintian --fail-on error,warning --tag-display-limit 0 target/deb/*.deb
work=$(mktemp -d "${TMPDIR:-/var/tmp}/chronfs-deb.XXXXXX")
root=$work/root
nspawn=''
cleanup() {
    if [ -n "$nspawn" ]; then
        kill "$nspawn" 2> /dev/null || true
        wait "$nspawn" || true
    fi
    rm -rf --one-file-system "$work"
}
trap cleanup EXIT
mkdir "$root"
tar -xf target/clean-root.tar -C "$root"
install -D -t "$root/packages" target/deb/{chronfs,chronfs-export,libchronfs0,libchronfs-dev}_*.deb \
    scripts/deb-test-inside.sh bindings/c/example.c

# As udev makes it; the host's may be root's only.
mknod -m 666 "$work/fuse" c 10 229
systemd-nspawn --quiet --register=no --keep-unit --directory="$root" --bind="$work/fuse:/dev/fuse" --private-network \
    --console=pipe --boot < /dev/null > "$work/console" 2>&1 &
nspawn=$!
inside() { nsenter --all --target "$init" "$@"; }
for _ in $(seq 600); do
    init=$(pgrep -P "$nspawn" || true)
    state=$([ -z "$init" ] || inside systemctl is-system-running 2> /dev/null || true)
    case $state in running | degraded) break ;; esac
    sleep 0.1
done
if ! inside bash /packages/deb-test-inside.sh; then
    inside journalctl --no-pager --boot | tail -n 40
    exit 1
fi
for page in "$root"/packages/man/man?/*.gz; do
    mandoc -Tlint -Werror "$page"
done
echo "$0: all well"
