#!/bin/bash
# Ordinary trouble around a queue in use, about 20 s, as root: killed writers on a disk that is full now and then, a copy
# that is restored under a live writer, stopped processes, an overlay below, little memory, a disk that becomes read-only.
# CHRON=path of chron-cli bash scripts/trouble.sh; ends with 1 if anything is not as it should be.
set -u
C=$(command -v "${CHRON:-chron-cli}") || { echo "no chron-cli; set CHRON"; exit 2; }
W=$(mktemp -d /tmp/trouble.XXXXXX) && cd "$W" || exit 2
trap 'cd /; umount -l "$W/small" "$W/over" 2>/dev/null; rm -rf "$W"' EXIT
wrong=0
check() { if [ "$2" = "$3" ]; then echo "ok     $1"; else echo "WRONG  $1: $2, not $3"; wrong=1; fi; }
dense() { "$C" tail -n +1 --format jsonl "$1" | jq .seq | awk 'NR > 1 && $1 != last + 1 { jumps++ } { last = $1 } END { print jumps + 0 }'; }
sound() { check "$2: doctor" "$("$C" doctor --deep "$1" | tail -n 1)" "1 queue checked: all well"; check "$2: jumps" "$(dense "$1")" 0; }

mkdir small && mount -t tmpfs -o size=2m none small || exit 2
"$C" create small/q --segment-size 64KiB --retain-bytes 256KiB
for _ in {1..30}; do
    seq -f %.0f 1000000 | "$C" append small/q 2>/dev/null & writer=$!
    head -c "$((RANDOM % 600))k" /dev/zero >small/ballast 2>/dev/null
    sleep "0.0$((RANDOM % 9))"
    kill -9 "$writer"; wait "$writer" 2>/dev/null
    rm small/ballast
done 2>/dev/null
echo last | "$C" append small/q 2>/dev/null; check "append after kills on a full disk" $? 0
sound small/q "kills on a full disk"

(seq 1000; sleep 4; seq 1000; sleep 2; seq 1000) | "$C" append q 2>/dev/null & writer=$!
until "$C" inspect q >/dev/null 2>&1; do :; done
timeout 20 "$C" tail -f --format txt q >/dev/null 2>&1 & follower=$!
sleep 1; cp -a q copy; rm -r q; cp -a copy q
wait "$writer"; check "the writer of a queue that was replaced" $? 1
wait "$follower"; check "who follows it" $? 1
echo next | "$C" append q 2>/dev/null; check "the next writer" $? 0
sound q "a copy put back"

for _ in {1..50}; do seq 100; sleep 0.02; done | "$C" append q 2>/dev/null & writer=$!
for _ in 1 2 3; do sleep 0.1; kill -STOP "$writer"; sleep 0.2; kill -CONT "$writer"; done 2>/dev/null
wait "$writer"; check "a writer that was stopped" $? 0
sound q "stops"

mkdir lower upper work over
"$C" create lower/q --segment-size 64KiB; seq 100 | "$C" append lower/q 2>/dev/null
if mount -t overlay none -o lowerdir=lower,upperdir=upper,workdir=work over 2>/dev/null; then
    seq 5000 | "$C" append over/q 2>/dev/null; check "append over an overlay" $? 0
    sound over/q "an overlay"
fi

seq -f '%.0f and some more' 500000 >input
(ulimit -v 60000; exec "$C" append q input 2>/dev/null); check "too little memory" $? 1
(ulimit -n 12; exec "$C" append q input 2>/dev/null); check "too few descriptors" $? 1
(ulimit -f 10; exec "$C" append new input 2>/dev/null); check "a limit of the file size" $? 1
check "what that left" "$(ls -d new 2>/dev/null)" ""
sound q "limits"

mount -o remount,ro small
echo x | "$C" append small/q 2>/dev/null; check "append where nothing can be written" $? 1
check "read there" "$("$C" tail -n 1 --format txt small/q)" last
mount -o remount,rw small
echo y | "$C" append small/q 2>/dev/null; check "and after" $? 0
exit $wrong
