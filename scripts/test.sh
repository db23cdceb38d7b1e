#!/usr/bin/env bash
# cargo test --features async with several test programs at a time: many of them wait more than they compute. Prints
# each program's report when it ends, and the slowest ones at the end.
#
#     bash scripts/test.sh [PROGRAMS AT A TIME]     default: one more than processors
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jobs=${1:-$(($(nproc) + 1))}
# Those that take longest, first.
first='steps|crash|market_kills|cli|mount_queue|system_calls|damage|fuzz|chronfs'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo test --locked --features async --no-run --message-format=json-render-diagnostics |
    jq -r 'select(.profile.test and .executable) | "\(.target.name) \(.executable)"' > "$work/all"
grep -E "^($first) " "$work/all" > "$work/programs" || true
grep -vE "^($first) " "$work/all" >> "$work/programs"

export work CARGO_MANIFEST_DIR=$PWD
test_one() {
    local name=$1 program=$2 start=$EPOCHREALTIME status=ok
    "$program" > "$work/$name.log" 2>&1 || status=FAILED
    local seconds
    seconds=$(awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $start }")
    # One report at a time.
    flock 9
    printf '%s %s\n' "$seconds" "$name" >> "$work/times"
    printf '\n== %s: %s, %s s\n' "$name" "$status" "$seconds"
    cat "$work/$name.log"
    [ "$status" = ok ] || echo "$name" >> "$work/failed"
}
export -f test_one
xargs -P "$jobs" -L 1 bash -c 'test_one "$@" 9>> "$work/lock"' _ < "$work/programs"

printf '\n== slowest, in seconds: '
sort -rn "$work/times" | head -n 8 | paste -sd ','
if [ -e "$work/failed" ]; then
    printf '\nFAILED: %s\n' "$(paste -sd ' ' "$work/failed")"
    exit 1
fi
cargo test --locked --features async --doc
