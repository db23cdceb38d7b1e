#!/usr/bin/env bash
# chronfs in about fifteen seconds: recorded market data is replayed into a queue, natively, at its own pace, while
# ordinary programs read and write the queue through the mount. Every command is shown before its output.
#
# Data: the recording in $CHRONFS_DATA or ../shared/data where there is one, else the sample in testdata/. Everything
# happens in a temporary directory, which is always removed at the end.
examples=()
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
speed=40
[ -z "$is_sample" ] || speed=2

say "A bus is a directory of queues; mounted, every queue is a directory of files."
show 'mkdir bus mnt'
show 'chron-cli create bus/market --segment-size 4MiB'
show 'chron-cli mount bus mnt'
show 'ls mnt/market'

say "Recorded market data becomes a queue: a line is a time in nanoseconds and a message."
show "gzip -dc '$recording' |
    sed -E 's/[\"\\\\]/\\\\&/g; s/^([0-9]+) (.*)/{\"timestamp_ns\":\\1,\"payload\":\"\\2\"}/' |
    chron-cli append --format jsonl recorded"

say "A feed replays it, natively and at its own pace ($speed times faster)."
start feed chron-cli replay recorded bus/market --keep-times --speed "$speed"

say "Live: these block until something comes."
show 'head -n 3 mnt/market/follow.txt | cut -c 1-100'
show 'head -n 1 mnt/market/follow.jsonl | jq -c "{seq, time, type, symbol: (.payload | fromjson | .data.s)}"'

say "The whole queue as a growing file."
show 'wc -l < mnt/market/messages.jsonl'
show '{ timeout 3 tail -n 2 -f mnt/market/messages.txt || [ $? = 124 ]; } | cut -c 1-100 | tail -n 8'
show 'wc -l < mnt/market/messages.jsonl'
show 'grep -c bookTicker mnt/market/messages.txt'
show 'head -n 1 mnt/market/messages.hex | cut -c 1-100'

say "Mark it ready; see who writes. The feed is the only writer: no other process can append in between."
show 'touch mnt/market/READY && cat mnt/market/READY'
show 'jq -c "{messages, last_seq, writer: .writer.state, ready}" mnt/market/status.json'
show 'echo hello > mnt/market/append.txt || echo refused'

say "Another queue, created by the shell alone."
show 'mkdir mnt/notes'
show 'echo hello > mnt/notes/append.txt'
show 'seq 1000 >> mnt/notes/append.txt'
show 'wc -l < mnt/notes/messages.txt; head -n 1 mnt/notes/messages.jsonl'

say "The feed ends; then the mount may write to its queue, too."
wait "${pids[feed]}"
unset 'pids[feed]'
show 'echo "{\"e\":\"closed\"}" > mnt/market/append.txt'
show 'tail -n 1 mnt/market/messages.jsonl'
show 'jq -r ".payload | fromjson | .data.e // .e // \"snapshot\"" mnt/market/messages.jsonl | sort | uniq -c'

say "Trade numbers rise by one per symbol: lost, duplicated or reordered ones would show."
show "jq -r '.payload | fromjson | .data? | select(.e? == \"trade\") | \"\\(.s) \\(.t)\"' mnt/market/messages.jsonl |
    awk '(\$1 in last) && \$2 != last[\$1] + 1 { breaks++ } { last[\$1] = \$2 }
         END { print NR \" trades, \" breaks + 0 \" breaks\"; exit breaks > 0 || NR == 0 }'"

say "The same without the mount."
show 'chron-cli ls bus'
show 'chron-cli inspect bus/market'
show 'chron-cli tail -n 1 bus/notes'

say "Done."
show 'chron-cli umount mnt'
