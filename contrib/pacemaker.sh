#!/bin/sh
# A bus that moves between two machines, with the file system it is on: Pacemaker, by pcs. Replace the device, the
# directories and the unit of your writer. Fencing must work first (pcs stonith); without it this loses data.
set -eu
pcs resource create bus_fs ocf:heartbeat:Filesystem \
    device=/dev/disk/by-label/bus directory=/var/lib/chronfs fstype=ext4 options=noatime \
    op monitor interval=10s OCF_CHECK_LEVEL=20 on-fail=fence --group bus
# The mount of the queues, if anybody needs it, then whoever writes.
pcs resource create bus_mount systemd:chronfs op monitor interval=10s --group bus
pcs resource create bus_writer systemd:your-writer op monitor interval=10s --group bus
# Findings of the doctor say whether the last writer's end was clean; nothing waits for them.
pcs constraint location bus prefers "$(hostname)"=50
