#!/usr/bin/env bash
# Builds for 64-bit ARM and runs the tests of the engine, the views and the command under qemu's user emulation, or those
# that are named as for cargo test. What that can't prove: docs/platforms.md.
#   scripts/aarch64.sh [--lib | --test NAME | -- FILTER]...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash scripts/tools.sh --aarch64
triple=aarch64-unknown-linux-gnu
rustup target add "$triple"

# The tests start chron-cli as a program, so the kernel must know the emulator; Debian's package tells it where systemd
# runs. F opens it now, so that it is found in any mount namespace.
formats=/proc/sys/fs/binfmt_misc
if [ ! -e "$formats/qemu-aarch64" ]; then
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    [ -e "$formats/register" ] || "${as_root[@]}" mount -t binfmt_misc none "$formats"
    elf='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":qemu-aarch64:M::$elf:$mask:$(command -v qemu-aarch64-static):F" | "${as_root[@]}" tee "$formats/register" > /dev/null
fi
export QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export RUSTFLAGS="${RUSTFLAGS-}"

# What qemu 7.2 can't do, by the parts of tests' names that need it.
cannot=(
    # openat2(2), without which there is no mount.
    fs::kernel::panic_tests fs::page_cache::tests::texts_that_do_not_answer fs::tree mount::
    dead_mounts_are_reported another_file_system_below_is_reported metrics_are_those_of_a_mount
    # preadv2(2), without which no file is used again: tests/reuse.rs, and
    recycle::tests::another_file_of_that_name recycle::tests::what_was_left_comes_back
    files_of_the_configured_size_are_reused reused_files_and_those_that_time_has_sealed_are_walked
    # futex_waitv(2); the sleeps that replace it are shorter.
    fan_in::tests::a_source_that_gets_something_before_the_sleep
    # It makes up /proc/self/stat, from which a writer knows when its process began: others can't identify it.
    the_second_writer_is_told_who_the_first_one_is a_lock_file_that_was_replaced_under_a_writer
    rm_leaves_queues_in_use send_says_why_it_can_not set_says_when_a_running_writer_takes_it_over
    # It does not tell which signals are ignored, and starts an interrupted open(2) again.
    signals_that_are_ignored_stay_ignored waiting_for_one_can_be_stopped
    # TCGETS2, by which rustix asks terminals.
    top_restores_the_terminal top_shows_what_happens
)
if [ $# -eq 0 ]; then
    set -- --lib
    for name in cli copy damage fan_in format growth independent queue readers retention settings times view wake writer; do
        set -- "$@" --test "$name"
    done
    set -- "$@" --
    for name in "${cannot[@]}"; do set -- "$@" --skip "$name"; done
fi
cargo test --locked --target "$triple" --no-fail-fast "$@"
