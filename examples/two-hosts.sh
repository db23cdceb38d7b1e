#!/usr/bin/env bash
# Two hosts and a witness, each a network namespace of its own, with a NATS cluster of three: orders are fed on A, and a
# strategy on B reads the standby. A is killed, B is promoted, the feed goes on there, A comes back as the standby.
# Counts every order. About a minute. Needs root, nats-server (2.11 or newer in earnest) and ip:
#
#   cargo build -p chronfs -p chronfs-bridge && bash examples/two-hosts.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${CHRONFS_BIN:-$PWD/target/debug}
cli=$bin/chron-cli relay=$bin/chron-relay
for program in "$cli" "$relay" nats-server ip; do
    command -v "$program" > /dev/null || { echo "$program is missing" >&2; exit 1; }
done
[ "$(id -u)" -eq 0 ] || { echo "network namespaces need root" >&2; exit 1; }

dir=$(mktemp -d)
space=chron$$
declare -A pids
stream=nats://10.99.0.1:4222,10.99.0.2:4222,10.99.0.3:4222/ORDERS

on() { # on HOST COMMAND …
    local host=$1
    shift
    ip netns exec "$space$host" "$@"
}
start() { # start NAME HOST COMMAND …: in the background
    local name=$1 host=$2
    shift 2
    ip netns exec "$space$host" "$@" 2>> "$dir/$name.log" &
    pids[$name]=$!
    # Or bash reports that it was killed.
    disown "${pids[$name]}"
}
end() { # end SIGNAL NAME …
    local signal=$1
    shift
    for name; do
        kill "-$signal" "${pids[$name]}" 2> /dev/null || true
        until_true "$name has ended" is_gone "${pids[$name]}"
        unset "pids[$name]"
    done
}
clean_up() {
    for name in "${!pids[@]}"; do kill -9 "${pids[$name]}" 2> /dev/null || true; done
    for host in a b c; do ip netns del "$space$host" 2> /dev/null || true; done
    rm -rf "$dir"
}
trap clean_up EXIT
until_true() { # until_true WHAT COMMAND …
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "timed out: $what" >&2; tail -n 5 "$dir"/*.log >&2; exit 1; }
        sleep 0.1
    done
}
is_gone() { ! kill -0 "$1" 2> /dev/null; }
last_seq() { "$cli" inspect --json "$1" 2> /dev/null | jq .last_seq; }
reached() { [ "$(last_seq "$1" || true)" -ge "$2" ] 2> /dev/null; }
say() { printf '\n== %s\n' "$*"; }

say "three hosts: a, b, and c, which only holds a bridge and the third server"
for host in a b c; do
    ip netns add "$space$host"
    on "$host" ip link set lo up
done
on c ip link add br0 type bridge
on c ip address add 10.99.0.3/24 dev br0
on c ip link set br0 up
number=0
for host in a b; do
    number=$((number + 1))
    ip -n "$space$host" link add eth0 type veth peer name "to-$host" netns "${space}c"
    on c ip link set "to-$host" master br0 up
    on "$host" ip address add "10.99.0.$number/24" dev eth0
    on "$host" ip link set eth0 up
done

number=0
for host in a b c; do
    number=$((number + 1))
    cat > "$dir/$host.conf" << EOF
server_name: $host
listen: 10.99.0.$number:4222
http: 10.99.0.$number:8222
jetstream { store_dir: "$dir/nats-$host" }
cluster { name: c, listen: 10.99.0.$number:6222, routes: [nats://10.99.0.1:6222, nats://10.99.0.2:6222, nats://10.99.0.3:6222] }
EOF
    start "nats-$host" "$host" nats-server -c "$dir/$host.conf"
done

feed() { # feed HOST FIRST: orders to the queue of that host, some hundred a second
    start "feed-$1" "$1" bash -c '
        for ((order = $1; ; order++)); do echo "order $order"; sleep 0.002; done | exec "$2" append --quiet "$3"' \
        feed "$2" "$cli" "$dir/$1/orders"
}

say "orders on a, relayed to the cluster; a standby on b, and a strategy that reads it"
mkdir "$dir/a" "$dir/b"
"$cli" create "$dir/a/orders" 2> /dev/null
feed a 1
start relay-a a "$relay" run "$dir/a/orders" "$stream" --replicas 3
start standby-b b "$relay" run "$stream" "$dir/b/orders"
until_true "the standby follows" reached "$dir/b/orders" 1000
start strategy b "$cli" tail -f -n +1 --format txt "$dir/b/orders" > "$dir/seen"

say "a is lost: its processes are killed, its cable is cut"
on c ip link set to-a down
end 9 relay-a nats-a
kill -9 $(ip netns pids "${space}a") 2> /dev/null || true
end 9 feed-a
at_a=$(last_seq "$dir/a/orders")

say "b is promoted, and the feed goes on there"
sleep 1
end TERM standby-b
on b "$relay" promote "$stream" "$dir/b/orders"
at_b=$(last_seq "$dir/b/orders")
echo "a had $at_a orders; b has $at_b: $((at_a - at_b)) had not been replicated"
feed b $((at_b + 1))
start relay-b b "$relay" run "$dir/b/orders" "$stream"

say "a comes back: its queue becomes the standby, what it has more is moved aside"
on c ip link set to-a up
start nats-a a nats-server -c "$dir/a.conf"
start standby-a a "$relay" run "$stream" "$dir/a/orders" --name standby --rejoin
until_true "a follows b" reached "$dir/a/orders" $((at_b + 1000))
kill -9 $(pgrep -P "${pids[feed-b]}") 2> /dev/null || true
end 9 feed-b
last=$(last_seq "$dir/b/orders")
until_true "a has everything" reached "$dir/a/orders" "$last"
until_true "the strategy has seen everything" bash -c "[ \$(wc -l < '$dir/seen') -eq $last ]"
end TERM relay-b standby-a strategy

say "every order, counted"
for host in a b; do
    "$cli" tail -n +1 --format txt "$dir/$host/orders" > "$dir/orders-$host"
done
seq -f 'order %.0f' 1 "$last" > "$dir/wanted"
cmp "$dir/orders-a" "$dir/wanted"
cmp "$dir/orders-b" "$dir/wanted"
cmp "$dir/seen" "$dir/wanted"
surplus=0
for aside in "$dir"/a/orders.surplus-*; do
    [ -e "$aside" ] || continue
    "$cli" tail -n +1 --format txt "$aside" > "$dir/aside"
    seq -f 'order %.0f' 1 "$at_a" | cmp - "$dir/aside"
    surplus=$((at_a - at_b))
done
[ "$surplus" -eq $((at_a - at_b)) ]
echo "$last orders on a, on b and in the strategy, each once, in order; $surplus of a's were not replicated and lie in its surplus"
