#!/usr/bin/env bash
# An hour (or the given number of seconds) of a queue in use: a writer appends, rolls every fraction of a second,
# retires what all readers have read; a native reader and one through a mount follow. Every other second one of them, or the
# mount's daemon, is killed with SIGKILL and started again, or the mount is unmounted, or everything is verified. Each
# message holds its own number: none may be lost, come late or hold another one. The exit code says so.
#
#     nice -n 19 bash scripts/soak.sh 3600
examples=()
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
seconds=$((SECONDS + ${1:-3600}))
queue=bus/market
failed=0
complain() {
    printf 'WRONG: %s\n' "$1"
    failed=1
}

mkdir bus mnt
chron-cli create "$queue" --segment-size 1MiB --retain-bytes 8MiB
chron-cli readers "$queue" add audit
echo 0 > audit.last
touch running

# Reads numbers; complains where one is missing. `resume`: whether it goes on after those that it has read before.
check_numbers() {
    # The last line of a killed process is incomplete.
    awk -v name="$1" -v resume="$2" -v last="$(cat "$1.last")" 'length($0) != 12 { next }
        { number = $0 + 0; read++ }
        !resume && read == 1 { last = number; next }
        number > last + 1 { print "WRONG: " name ": " last + 1 " to " number - 1 " are missing" }
        !resume && number <= last { print "WRONG: " name ": " number " comes again" }
        number > last { last = number }
        END { print last > (name ".last"); print read + 0 >> (name ".count") }'
}
# Ends with the directory that it runs in, whatever happens to this script.
generate() {
    local number=$1
    while [ -e running ] && seq -f %012.0f "$number" $((number + 499)) 2> /dev/null; do
        number=$((number + 500))
        sleep 0.005
    done
}
# Executes a command, and leaves its pid where `finish` finds it.
named() { exec sh -c 'echo $$ > "$0.pid"; exec "$@"' "$@"; }
last_seq() { chron-cli inspect --json "$queue" | jq .last_seq; }
start_writer() {
    generate $(($(last_seq) + 1)) | named writer chron-cli append "$queue" 2>> writer.log &
    pids[writer]=$!
}
start_audit() {
    named audit chron-cli tail -f --reader audit --commit --format txt "$queue" 2>> audit.log |
        check_numbers audit 1 >> audit.log &
    pids[audit]=$!
}
start_follow() {
    echo 0 > follow.last
    named follow cat mnt/market/follow.txt 2> /dev/null | check_numbers follow 0 >> follow.log &
    pids[follow]=$!
}
start_mount() {
    named mount chron-cli mount -f bus mnt 2>> mount.log &
    pids[mount]=$!
    for _ in $(seq 200); do
        [ ! -e mnt/market/messages.txt ] || return 0
        sleep 0.05
    done
    complain "the mount does not come"
}
# Ends a process with a signal, and waits for it and for the reader of its output.
finish() {
    until [ -s "$2.pid" ]; do sleep 0.01; done
    kill "-$1" "$(cat "$2.pid")" 2> /dev/null || true
    wait "${pids[$2]}" 2> /dev/null || true
    unset "pids[$2]"
    rm "$2.pid"
}

start_mount
start_writer
start_audit
start_follow
declare -A count=([writer]=0 [audit]=0 [mount]=0 [remount]=0 [verified]=0)
while [ "$SECONDS" -lt "$seconds" ]; do
    sleep "1.$((RANDOM % 10))"
    case $((RANDOM % 6)) in
        0 | 1)
            finish KILL writer
            start_writer
            count[writer]=$((count[writer] + 1))
            ;;
        2)
            finish KILL audit
            start_audit
            count[audit]=$((count[audit] + 1))
            ;;
        3)
            finish KILL mount
            finish TERM follow
            start_mount
            start_follow
            count[mount]=$((count[mount] + 1))
            ;;
        4)
            chron-cli umount mnt || complain "it can't be unmounted"
            finish TERM mount
            finish TERM follow
            start_mount
            start_follow
            count[remount]=$((count[remount] + 1))
            ;;
        5)
            chron-cli doctor --deep --json bus > doctor.json || true
            jq -e 'all(.findings[]; .severity != "error")' doctor.json > /dev/null || {
                complain "doctor: $(jq -c '.findings[] | select(.severity == "error")' doctor.json)"
            }
            timeout 20 tail -n 200 mnt/market/messages.jsonl |
                jq -se 'length > 0 and all(.[]; (.payload | tonumber) == .seq)' > /dev/null ||
                complain "the mount shows other numbers"
            count[verified]=$((count[verified] + 1))
            ;;
    esac
    for name in audit follow; do
        if grep -h WRONG "$name.log"; then
            failed=1
            break 2
        fi
    done
done

say "The writer ends; everything is read."
rm running
wait "${pids[writer]}"
unset 'pids[writer]'
last=$(last_seq)
for _ in $(seq 600); do
    [ "$(chron-cli inspect --json "$queue" | jq '.readers[0].lag_messages')" != 0 ] || break
    sleep 0.1
done
finish TERM audit
finish TERM follow
chron-cli umount mnt
finish TERM mount
[ "$(cat audit.last)" = "$last" ] || complain "audit has read up to $(cat audit.last), there are $last"
! grep -h WRONG audit.log follow.log || failed=1
chron-cli doctor --deep bus || complain "doctor"
sum() { awk '{ sum += $1 } END { print sum + 0 }' "$1.count"; }
printf '%s s, %s messages, first retained %s; read: %s natively, %s through the mount; killed: %s writers, %s readers, %s daemons; %s remounts, %s verified\n' \
    "$SECONDS" "$last" "$(chron-cli inspect --json "$queue" | jq .first_seq)" "$(sum audit)" "$(sum follow)" \
    "${count[writer]}" "${count[audit]}" "${count[mount]}" "${count[remount]}" "${count[verified]}"
exit "$failed"
