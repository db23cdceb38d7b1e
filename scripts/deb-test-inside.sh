#!/usr/bin/env bash
# What deb-test.sh runs in the container, as its root.
set -euo pipefail
cd /

step() { printf '== %s\n' "$*"; }
fail() {
    echo "failed: $*" >&2
    exit 1
}
# Runs a command line as a user, with what a login would give it.
as() { runuser -u "$1" -- env -i HOME="/home/$1" PATH=/usr/bin:/bin TZ=UTC bash -c "cd; umask 022; $2"; }
is() { [ "$2" = "$3" ] || fail "$1: '$2' instead of '$3'"; }
refused() { if "$@" > /dev/null 2>&1; then fail "$*: not refused"; fi; }
# Waits until a command line succeeds.
soon() {
    for _ in $(seq 200); do
        if eval "$1" > /dev/null 2>&1; then return; fi
        sleep 0.1
    done
    fail "$1"
}
# All files but those that change by themselves.
files() { find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /packages -o -path /var/log -o -path '/var/lib/systemd' -o -path /home \) -prune -o -print | sort; }

useradd --create-home member
useradd --create-home other
files > /tmp/before

step install
dpkg -i /packages/chronfs_*.deb
is 'who has the export' "$(chron-cli export /srv /tmp/data 2>&1 | grep -o 'package chronfs-export')" 'package chronfs-export'
dpkg -i /packages/chronfs-export_*.deb
usermod --append --groups chronfs member
for page in $(dpkg -L chronfs chronfs-export | grep '/man/man./'); do
    mkdir -p "/packages/man/$(basename "$(dirname "$page")")"
    cp -L "$page" "/packages/man/$(basename "$(dirname "$page")")/"
done
chron-cli --version
is owner "$(stat -c '%U:%G %a' /var/lib/chronfs)" 'chronfs:chronfs 2770'
is 'not started' "$(systemctl is-active chronfs || true)" inactive

step the service, as root, a member of the group and another user
systemctl start chronfs
mkdir /run/chronfs/ticks
echo hello > /run/chronfs/ticks/append.txt
is payload "$(tail -n 1 /run/chronfs/ticks/messages.jsonl | jq -r .payload)" hello
is group "$(stat -c %G /var/lib/chronfs/ticks)" chronfs
is 'a member reads' "$(as member 'cat /run/chronfs/ticks/messages.txt')" hello
as member 'mkdir /run/chronfs/mine && echo own > /run/chronfs/mine/append.txt'
is 'a member owns' "$(stat -c %U:%G /var/lib/chronfs/mine/control.meta)" member:chronfs
is 'the native command' "$(as member 'CHRONFS_ROOT=/var/lib/chronfs chron-cli tail --format txt mine')" own
refused as member 'echo no > /run/chronfs/ticks/append.txt'
refused as other 'ls /run/chronfs'
as member 'mkdir /run/chronfs/ticks/readers/r 2> /dev/null' && fail 'a reader without the right to write'
mkdir /run/chronfs/ticks/readers/billing
is position "$(cat /run/chronfs/ticks/readers/billing/position)" 1
is take "$(head -n 1 /run/chronfs/ticks/readers/billing/take.txt)" hello
rmdir /run/chronfs/ticks/readers/billing
touch /run/chronfs/ticks/READY
jq -e .payload /run/chronfs/.merged/messages.jsonl
cat /run/chronfs/.chronfs/doctor
timeout 20 head -n 1 /run/chronfs/ticks/follow.txt > /tmp/followed &
follower=$!
soon '[[ $(ls -l /proc/*/fd 2> /dev/null) == *ticks/follow.txt* ]]'
chron-cli send /var/lib/chronfs/ticks news
wait "$follower"
is followed "$(cat /tmp/followed)" news
as member 'for i in $(seq 1000); do echo "line $i"; done > /run/chronfs/mine/append.txt'
is lines "$(as member 'wc -l < /run/chronfs/mine/messages.txt')" 1001
is grep "$(as member 'grep -c "line 99" /run/chronfs/mine/messages.jsonl')" 11
old=$(systemctl show --property=MainPID --value chronfs)
kill -9 "$old"
soon '[ "$(systemctl show --property=MainPID --value chronfs)" -gt 0 ] && [ "$(systemctl show --property=MainPID --value chronfs)" != '"$old"' ] && systemctl is-active chronfs'
soon 'cat /run/chronfs/ticks/messages.txt'
systemctl stop chronfs
refused mountpoint /run/chronfs
is failed "$(systemctl --failed --plain --no-legend)" ''
journalctl --quiet --no-pager --boot --unit chronfs --identifier chronfs
systemd-analyze security --no-pager --threshold=41 chronfs | tail -n 1

step 'mount(8), fstab, a mount unit'
mkdir -p /srv/bus /mnt/bus
mount -t chronfs -o allow_other /srv/bus /mnt/bus
mkdir /mnt/bus/q
echo one > /mnt/bus/q/append.txt
is type "$(findmnt -no FSTYPE /mnt/bus)" fuse.chronfs
umount /mnt/bus
grep -v '^#' /usr/share/doc/chronfs/examples/fstab >> /etc/fstab
mount /mnt/bus
is 'from fstab' "$(cat /mnt/bus/q/messages.txt)" one
refused mkdir /mnt/bus/read-only
umount /mnt/bus
sed -i /chronfs/d /etc/fstab
cp /usr/share/doc/chronfs/examples/mnt-bus.* /etc/systemd/system/
systemctl daemon-reload
# Containers have no automounts.
systemctl start mnt-bus.mount
is 'from a unit' "$(cat /mnt/bus/q/messages.txt)" one
systemctl stop mnt-bus.mount
rm /etc/systemd/system/mnt-bus.*
systemctl daemon-reload
rm -r /srv/bus /mnt/bus

step 'figures for node_exporter'
mkdir -p /var/lib/prometheus/node-exporter
for unit in service timer; do
    sed 's|/srv/bus|/var/lib/chronfs|' "/usr/share/doc/chronfs/examples/prometheus/chronfs-textfile.$unit" \
        > "/etc/systemd/system/chronfs-textfile.$unit"
done
systemctl daemon-reload
systemctl start chronfs-textfile.timer chronfs-textfile.service
is figure "$(grep -c '^chronfs_queue_last_seq{queue="ticks"} 2$' /var/lib/prometheus/node-exporter/chronfs.prom)" 1
systemctl stop chronfs-textfile.timer
systemd-analyze security --no-pager --threshold=40 chronfs-textfile | tail -n 1
rm /etc/systemd/system/chronfs-textfile.*
systemctl daemon-reload
rm -r /var/lib/prometheus

step a plain user with a mount of its own
as other 'mkdir bus mnt && chron-cli mount bus mnt && mkdir mnt/ticks && echo hello > mnt/ticks/append.txt'
is payload "$(as other 'cat mnt/ticks/messages.txt')" hello
as other 'chron-cli inspect bus/ticks > inspected && chron-cli doctor bus && chron-cli umount mnt'
refused mountpoint /home/other/mnt

step 'payloads decoded and exported'
as other 'chron-cli append -q --type 1 --format jsonl bus/quotes <<< "{\"payload_b64\":\"BwAAADkwAAAAAAAA\"}"'
cat > /home/other/bus/quotes/schema.toml << 'EOF'
[[message]]
type = 1
name = "quote"
format = "fixed"
fields = [{ name = "id", type = "u32" }, { name = "bid", type = "i64", scale = 2 }]
EOF
decoded='{"id":7,"bid":123.45}'
is 'tail --decode' "$(as other 'chron-cli tail --decode --format jsonl bus/quotes | jq -c .decoded')" "$decoded"
as other 'chron-cli mount bus mnt'
is 'in the mount' "$(as other 'jq -c .decoded mnt/quotes/messages.decoded.jsonl')" "$decoded"
as other 'chron-cli umount mnt'
for format in csv parquet; do as other "chron-cli export --quiet --unsealed --format $format bus data"; done
is csv "$(as other 'zstd -dc data/queue=quotes/*/quote-*.csv.zst' | cut -d , -f 1,3-5)" $'seq,type,id,bid\n1,1,7,123.45'
parquet=$(ls /home/other/data/queue=quotes/*/quote-*.parquet)
is parquet "$(head -c 4 "$parquet") $(tail -c 4 "$parquet")" 'PAR1 PAR1'

step 'the library for C'
dpkg -i /packages/libchronfs0_*.deb /packages/libchronfs-dev_*.deb
example() { (cd /tmp && cc -Wall -Werror -o example /packages/example.c "$@" && ./example /tmp/queue hello); }
is 'the shared library' "$(example $(pkg-config --cflags --libs chronfs))" '1: hello'
is 'the static library' "$(example $(pkg-config --static --cflags --libs chronfs | sed 's/-lchronfs/-l:libchronfs.a/'))" '2: hello'
is 'and the command' "$(chron-cli tail --format txt /tmp/queue | tail -n 1)" hello
dpkg --purge libchronfs-dev libchronfs0
rm -r /tmp/queue /tmp/example

step completions
bash -c 'source /usr/share/bash-completion/completions/chron-cli; complete -p chron-cli'

step 'an upgrade leaves the mount alone, a removal ends it'
systemctl start chronfs
exec 3< /run/chronfs/ticks/messages.txt
dpkg -i /packages/chronfs_*.deb
is 'still open' "$(head -n 1 <&3)" hello
exec 3<&-
dpkg --purge chronfs-export chronfs
refused mountpoint /run/chronfs
[ -e /var/lib/chronfs/ticks/control.meta ] || fail 'the queues are gone'
rm -r /var/lib/chronfs
files > /tmp/after
# The user and the group stay, as Debian's policy recommends.
diff /tmp/before /tmp/after | grep -Ev '^[0-9,acd]+$|^> /etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|/var/lib/(dpkg|apt)/|/var/cache/' && fail 'files are left'
step all well
