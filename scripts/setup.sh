# What demo.sh, bus.sh and soak.sh have in common; to be sourced after `examples` has been set to those to build. Builds
# them and chron-cli, or takes those in $CHRONFS_BIN; finds the data; creates a temporary directory `$work` that is removed
# at the end, whatever happens, with everything that was started and mounted in it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/tools.sh
if [ ! -e /dev/fuse ]; then
    echo "$0: there is no /dev/fuse here; load the module (modprobe fuse) or give the container the device" >&2
    exit 1
fi
bin=${CHRONFS_BIN:-}
if [ -z "$bin" ]; then
    # Without examples this builds no dependencies of tests.
    cargo build --release --locked --bin chron-cli "${examples[@]/#/--example=}" < /dev/null
    bin=$(cargo metadata --format-version 1 --no-deps < /dev/null | jq -r .target_directory)/release
fi
PATH="$bin:$bin/examples:$PATH"

# The recording in $CHRONFS_DATA or ../shared/data where there is one, else the sample.
recording=$PWD/testdata/market-sample.log.gz
is_sample=yes
for data in "${CHRONFS_DATA:-}" ../shared/data; do
    large=$data/market/binance-usdm-btcusdt-ethusdt-20240808.log.gz
    if [ -n "$data" ] && [ -r "$large" ]; then
        recording=$(realpath "$large")
        is_sample=
        break
    fi
done

work=$(mktemp -d "${TMPDIR:-/tmp}/chronfs-example.XXXXXX")
declare -A pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
    cd /
    chron-cli umount --lazy "$work/mnt" 2> /dev/null || true
    # Never remove files through a live mount.
    if [ ! -d "$work/mnt" ] || rmdir "$work/mnt"; then rm -rf "$work"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$(printf '\033[1m') plain=$(printf '\033[0m')
fi
say() { printf '\n# %s\n' "$1"; }
# Shows a command, then runs it.
show() {
    printf '%s$ %s%s\n' "$bold" "$1" "$plain"
    eval "$1"
}
# Starts a process in the background, and remembers it by name.
start() {
    local name=$1
    shift
    printf '%s$ %s &%s\n' "$bold" "$*" "$plain"
    "$@" 2> "$name.log" > /dev/null &
    pids[$name]=$!
}
cd "$work"
