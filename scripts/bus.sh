#!/usr/bin/env bash
# A whole bus in about twenty seconds: a feed replays recorded market data into one queue, two strategies filter their
# symbols and write orders, a router finds them and acknowledges each order; a mount shows it all. Strategies and the
# router are killed with SIGKILL in the middle and started again. At the end the orders are compared with what
# the market data demands, through the mount and with jq: none may be lost, none repeated. The exit code says so.
#
# Data: the recording in $CHRONFS_DATA or ../shared/data where there is one, else the sample in testdata/. Everything
# happens in a temporary directory, which is always removed at the end.
examples=(feed strategy router)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
speed=30 every=5 symbols=(BTCUSDT ETHUSDT)
[ -z "$is_sample" ] || speed=2 every=2 symbols=(ALPHA BETA)

# Kills one at once, in the middle of its work.
murder() {
    printf '$ kill -9 %s\n' "$1"
    kill -9 "${pids[$1]}"
    wait "${pids[$1]}" 2> /dev/null || true
    unset "pids[$1]"
}
# Asks one to end, and waits for it.
stop() {
    kill "${pids[$1]}"
    wait "${pids[$1]}"
    unset "pids[$1]"
}
# Waits until a command succeeds, for at most 30 seconds.
until_so() {
    local deadline=$((SECONDS + 30))
    until eval "$1"; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            echo "bus: timed out: until $1" >&2
            return 1
        fi
        sleep 0.1
    done
}

market=market_data/queue/binance
say "A bus with a mount beside it. The router and the strategies start first: they can start in any order."
show 'mkdir bus mnt'
show 'chron-cli mount bus mnt'
start router router bus
start momentum strategy bus momentum --feed binance --symbol "${symbols[0]}" --every "$every"
start pairs strategy bus pairs --feed binance --symbol "${symbols[0]}" --symbol "${symbols[1]}" --every "$every"
start feed feed "bus/$market" "$recording" --speed "$speed"

orders() { echo "orders/queue/$1/orders_out"; }
has_orders() { [ "$(wc -l < "mnt/$(orders "$1")/messages.jsonl" 2> /dev/null || echo 0)" -gt "$2" ]; }
until_so 'has_orders momentum 5 && has_orders pairs 5'
show 'chron-cli ls bus'
show "cat mnt/$(orders momentum)/LEASE; head -n 1 mnt/$(orders momentum)/messages.txt"

say "A strategy is killed. Its lease expires, its orders stay; the router goes on."
murder momentum
until_so "chron-cli ls --json bus | jq -se 'any(.lease.state? == \"expired\")' > /dev/null"
show 'chron-cli doctor bus || true'
start momentum strategy bus momentum --feed binance --symbol "${symbols[0]}" --every "$every"

say "The router is killed, and the other strategy too, several times."
for _ in 1 2 3; do
    seen=$(wc -l < "mnt/$(orders pairs)/messages.jsonl")
    murder router
    murder pairs
    start router router bus
    start pairs strategy bus pairs --feed binance --symbol "${symbols[0]}" --symbol "${symbols[1]}" --every "$every"
    until_so 'has_orders pairs "$seen" || ! kill -0 "${pids[feed]}" 2> /dev/null'
done

say "The feed ends; everything is processed."
wait "${pids[feed]}"
unset 'pids[feed]'
cat feed.log
lag() { jq -s '[.[].readers[].lag_messages] | add' "mnt/$market/status.json" mnt/orders/queue/*/orders_out/status.json; }
until_so '[ "$(lag)" = 0 ]'
stop momentum
stop pairs
until_so "! chron-cli ls --json bus | jq -se 'any(.ready)' > /dev/null"
stop router
show 'chron-cli ls bus'
show 'cat momentum.log router.log | tail -n 12'

say "The orders that the market data demands, and those that were made and acknowledged."
# The ids that a strategy must have written: its name, symbols.
expected() {
    jq -r --arg name "$1" --argjson every "$every" --argjson symbols "$2" 'select(.payload | contains("\"trade\"")) |
        .seq as $seq | .payload | fromjson | .data? // empty | select(.e? == "trade" and .t % $every == 0) |
        select(.s as $s | $symbols | index($s)) | "\($name)-\($seq)"' "mnt/$market/messages.jsonl"
}
failed=0
check() {
    local name=$1 symbols=$2
    expected "$name" "$symbols" > expected
    jq -r '.payload | fromjson | .id' "mnt/orders/queue/$name/orders_out/messages.jsonl" > ordered
    jq -r '.payload | fromjson | .id' "mnt/orders/queue/$name/orders_in/messages.jsonl" > acknowledged
    printf '%s: %s expected, %s ordered, %s acknowledged' "$name" "$(wc -l < expected)" "$(wc -l < ordered)" \
        "$(wc -l < acknowledged)"
    # In this order, each once.
    if [ -s expected ] && cmp -s expected ordered && cmp -s expected acknowledged; then
        echo ': none lost, none repeated'
    else
        echo ': WRONG'
        diff expected ordered | head -n 5 || true
        diff expected acknowledged | head -n 5 || true
        failed=1
    fi
}
check momentum "[\"${symbols[0]}\"]"
check pairs "[\"${symbols[0]}\", \"${symbols[1]}\"]"
show 'chron-cli umount mnt'
exit "$failed"
