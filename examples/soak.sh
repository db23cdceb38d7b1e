#!/usr/bin/env bash
# An hour (or so many seconds as are given) of a queue in use: a writer appends, rolls every fraction of a second, retires
# what everybody has read; a native reader and one through a mount follow. Every other second one of them, or the
# mount's daemon, is killed with SIGKILL and started again, or the mount is taken away, or everything is verified. Each
# message holds its own number: none may be lost, come late or hold another one. The exit code says so.
#
#     nice -n 19 bash examples/soak.sh 3600
examples=()
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
seconds=${1:-3600}
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
mkfifo writer.pipe audit.pipe follow.pipe

# Reads numbers; complains where one is missing. `resume`: whether it goes on behind those that it has read before.
check_numbers() {
    # What a killed process has not finished writing is shorter.
    awk -v name="$1" -v resume="$2" -v last="$(cat "$1.last")" 'length($0) != 12 { next }
        { number = $0 + 0; read++ }
        !resume && read == 1 { last = number; next }
        number > last + 1 { print "WRONG: " name ": " last + 1 " to " number - 1 " are missing" }
        !resume && number <= last { print "WRONG: " name ": " number " comes again" }
        number > last { last = number }
        END { print last > (name ".last"); print read + 0 >> (name ".count") }' < "$1.pipe"
}
generate() {
    local number=$1
    while seq -f %012.0f "$number" $((number + 499)); do
        number=$((number + 500))
        sleep 0.005
    done
}
last_seq() { chron-cli inspect --json "$queue" | jq .last_seq; }
start_writer() {
    generate $(($(last_seq) + 1)) > writer.pipe 2> /dev/null &
    pids[generate]=$!
    chron-cli append "$queue" < writer.pipe 2>> writer.log &
    pids[writer]=$!
}
start_audit() {
    check_numbers audit 1 >> audit.log &
    pids[audit_check]=$!
    chron-cli tail -f --reader audit --commit --format txt "$queue" > audit.pipe 2>> audit.log &
    pids[audit]=$!
}
start_follow() {
    echo 0 > follow.last
    check_numbers follow 0 >> follow.log &
    pids[follow_check]=$!
    cat mnt/market/follow.txt > follow.pipe 2> /dev/null &
    pids[follow]=$!
}
start_mount() {
    chron-cli mount -f bus mnt 2>> mount.log &
    pids[mount]=$!
    for _ in $(seq 200); do
        [ ! -e mnt/market/messages.txt ] || return 0
        sleep 0.05
    done
    complain "the mount does not come"
}
# Ends what is named with a signal, and waits for it and for those named behind it.
finish() {
    local signal=$1 name
    shift
    kill "-$signal" "${pids[$1]}" 2> /dev/null || true
    for name in "$@"; do
        wait "${pids[$name]}" 2> /dev/null || true
        unset "pids[$name]"
    done
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
            finish KILL writer generate
            start_writer
            count[writer]=$((count[writer] + 1))
            ;;
        2)
            finish KILL audit audit_check
            start_audit
            count[audit]=$((count[audit] + 1))
            ;;
        3)
            finish KILL mount
            finish TERM follow follow_check
            start_mount
            start_follow
            count[mount]=$((count[mount] + 1))
            ;;
        4)
            chron-cli umount mnt || complain "it can't be unmounted"
            finish TERM mount
            finish TERM follow follow_check
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
finish TERM generate writer
last=$(last_seq)
for _ in $(seq 600); do
    [ "$(chron-cli inspect --json "$queue" | jq '.readers[0].lag_messages')" != 0 ] || break
    sleep 0.1
done
finish TERM audit audit_check
finish TERM follow follow_check
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
