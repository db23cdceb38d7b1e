#!/usr/bin/env bash
# chronfs in about fifteen seconds: a feed replays recorded market data into a queue, natively, at its own pace, while
# ordinary programs read and write the queue through the mount. Every command is shown before its output.
#
# Data: the recording in $CHRONFS_DATA or ../shared/data where there is one, else the sample in testdata/. Everything
# happens in a temporary directory, which is gone afterwards, whatever happens.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash examples/tools.sh
if [ ! -e /dev/fuse ]; then
    echo "demo: there is no /dev/fuse here; load the module (modprobe fuse) or give the container the device" >&2
    exit 1
fi
cargo build --release --locked --bin chron-cli --example feed < /dev/null
target=$(cargo metadata --format-version 1 --no-deps < /dev/null | jq -r .target_directory)
PATH="$target/release:$target/release/examples:$PATH"

recording=$PWD/testdata/market-sample.log.gz
speed=2
for data in "${CHRONFS_DATA:-}" ../shared/data; do
    large=$data/market/binance-usdm-btcusdt-ethusdt-20240808.log.gz
    if [ -n "$data" ] && [ -r "$large" ]; then
        recording=$(realpath "$large")
        speed=40
        break
    fi
done

work=$(mktemp -d "${TMPDIR:-/tmp}/chronfs-demo.XXXXXX")
feed_pid=
cleanup() {
    if [ -n "$feed_pid" ]; then kill "$feed_pid" 2> /dev/null || true; fi
    cd /
    chron-cli umount "$work/mnt" 2> /dev/null || true
    # Never remove files through a mount that is still there.
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

cd "$work"
say "A bus is a directory of queues; mounted, every queue is a directory of files."
show 'mkdir bus mnt'
show 'chron-cli create bus/market --segment-size 4MiB'
show 'chron-cli mount bus mnt'
show 'ls mnt/market'

say "A feed appends recorded market data, natively and at its own pace ($speed times faster)."
show "feed bus/market $(printf %q "$recording") --speed $speed &"
feed_pid=$!

say "Live: these block until something comes."
show 'head -n 3 mnt/market/follow.txt | cut -c 1-100'
show 'head -n 1 mnt/market/follow.jsonl | jq -c "{seq, time, type, symbol: (.payload | fromjson | .data.s)}"'

say "The whole queue as a growing file."
show 'wc -l < mnt/market/messages.jsonl'
show '{ timeout 3 tail -n 2 -f mnt/market/messages.txt || [ $? = 124 ]; } | cut -c 1-100 | tail -n 8'
show 'wc -l < mnt/market/messages.jsonl'
show 'grep -c bookTicker mnt/market/messages.txt'
show 'head -n 1 mnt/market/messages.hex | cut -c 1-100'

say "Mark it ready; see who writes. The feed is the one writer: nobody else gets in between."
show 'touch mnt/market/READY && cat mnt/market/READY'
show 'jq -c "{messages, last_seq, writer: .writer.state, ready}" mnt/market/status.json'
show 'echo hello > mnt/market/append.txt || echo refused'

say "Another queue, made by the shell alone."
show 'mkdir mnt/notes'
show 'echo hello > mnt/notes/append.txt'
show 'seq 1000 >> mnt/notes/append.txt'
show 'wc -l < mnt/notes/messages.txt; head -n 1 mnt/notes/messages.jsonl'

say "The feed ends; then the mount may write to its queue, too."
wait "$feed_pid"
feed_pid=
show 'echo "{\"e\":\"closed\"}" > mnt/market/append.txt'
show 'tail -n 1 mnt/market/messages.jsonl'
show 'jq -r ".payload | fromjson | .data.e // .e // \"snapshot\"" mnt/market/messages.jsonl | sort | uniq -c'

say "Trade numbers rise by one per symbol: what is lost, doubled or out of order would show."
show "jq -r '.payload | fromjson | .data? | select(.e? == \"trade\") | \"\\(.s) \\(.t)\"' mnt/market/messages.jsonl |
    awk '(\$1 in last) && \$2 != last[\$1] + 1 { breaks++ } { last[\$1] = \$2 }
         END { print NR \" trades, \" breaks + 0 \" breaks\"; exit breaks > 0 || NR == 0 }'"

say "The same without the mount."
show 'chron-cli ls bus'
show 'chron-cli inspect bus/market'
show 'chron-cli tail -n 1 bus/notes'

say "Done."
show 'chron-cli umount mnt'
