"""What Python pays for a message, beside Rust, lmdb and a pipe, all in one run. Needs numpy, pyarrow, polars and lmdb, and
a build with optimisation:

    pip install ./bindings/python numpy pyarrow polars lmdb
    python bindings/python/benches/speed.py [MESSAGES]
"""

import itertools
import multiprocessing
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

import lmdb
import numpy
import polars
import pyarrow

import chronfs

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
ROUNDS = 5
PAYLOAD = bytes(range(64))
root = tempfile.TemporaryDirectory(dir=os.environ.get("CHRONFS_BENCH_DIR"))
path = Path(root.name)


def new_queue(number=itertools.count()):
    # Like a queue that has been in use: retention lets files be used again.
    return chronfs.Queue(path / f"queue{next(number)}", create=True, retain_segments=4)


append_queue = new_queue()
append_queue.writer().append_items(numpy.zeros((5_000_000, 64), "u1"), 1)
scan_queue = chronfs.Queue(path / "scanned", create=True)
scan_queue.writer().append_items(numpy.frombuffer(PAYLOAD * COUNT, "V64"), 1)


def append():
    with append_queue.writer() as writer:
        append, payload = writer.append, PAYLOAD
        yield
        for _ in range(COUNT):
            append(payload, 1)


def extend():
    with append_queue.writer() as writer:
        payloads = itertools.repeat(PAYLOAD, COUNT)
        yield
        writer.extend(payloads, 1)


def append_items():
    items = numpy.frombuffer(PAYLOAD * COUNT, "V64")
    with append_queue.writer() as writer:
        yield
        writer.append_items(items, 1)


def scan():
    yield
    for message in scan_queue.scan():
        pass


def scan_bytes():
    yield
    for message in scan_queue.scan():
        bytes(message)


def scan_unpack():
    unpack = struct.Struct("<qq").unpack_from
    yield
    for message in scan_queue.scan():
        message.seq, unpack(message)


def batches():
    yield
    for batch in scan_queue.scan().batches():
        batch.to_numpy("V64")


def arrow():
    yield
    assert pyarrow.table(scan_queue.scan()).num_rows == COUNT


def arrow_unverified():
    yield
    assert pyarrow.table(scan_queue.scan(verify=False)).num_rows == COUNT


def to_polars():
    yield
    assert polars.DataFrame(scan_queue.scan()).height == COUNT


environment = lmdb.open(str(path / "lmdb"), map_size=4 << 30, sync=False)


def lmdb_put():
    key, payload = struct.Struct(">Q").pack, PAYLOAD
    with environment.begin(write=True) as transaction:
        transaction.drop(environment.open_db(None, transaction), delete=False)
    yield
    with environment.begin(write=True) as transaction:
        put = transaction.put
        for i in range(COUNT):
            put(key(i), payload, append=True)


def lmdb_scan():
    yield
    with environment.begin(buffers=True) as transaction:
        for key, value in transaction.cursor():
            pass


def rust(case, queue):
    """How many seconds a loop in Rust takes for the same: bindings/c/benches/speed.rs."""
    command = ["cargo", "bench", "--quiet", "--locked", "--package", "chronfs-c", "--bench", "speed", "--"]
    text = subprocess.run(
        [*command, case, str(queue.path), str(COUNT)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    return int(text) * 1e-9


def rust_append():
    yield
    yield rust("append", append_queue)


def rust_scan():
    yield
    yield rust("scan", scan_queue)


def feed(descriptor):
    write, payload = os.write, PAYLOAD
    for _ in range(COUNT):
        write(descriptor, payload)


def pipe():
    read, write = os.pipe()
    writer = multiprocessing.get_context("fork").Process(target=feed, args=(write,))
    yield
    writer.start()
    os.close(write)
    while os.read(read, 64):
        pass
    writer.join()
    os.close(read)


# Each is prepared up to its first yield, and then timed, unless it yields a time of its own.
CASES = {
    "append: Rust, `writer.append(type, payload)`": rust_append,
    "append: `append(payload, type)`": append,
    "append: `extend(iterable)`": extend,
    "append: `append_items(array)`": append_items,
    "append: lmdb `put`, one transaction": lmdb_put,
    "read: Rust, `reader.next()`": rust_scan,
    "read: `for m in scan`": scan,
    "read: the same, `bytes(m)`": scan_bytes,
    "read: the same, `m.seq`, `unpack_from(m)`": scan_unpack,
    "read: batches as numpy arrays": batches,
    "read: `pyarrow.table(scan)`": arrow,
    "read: the same, `verify=False`": arrow_unverified,
    "read: `polars.DataFrame(scan)`": to_polars,
    "read: lmdb cursor, buffers": lmdb_scan,
    "write and read: a pipe between two processes": pipe,
}

found = {name: [] for name in CASES}
for _ in range(ROUNDS):
    for name, case in CASES.items():
        run = case()
        next(run)
        start = time.perf_counter()
        own = deque(run, maxlen=1)
        elapsed = time.perf_counter() - start
        found[name].append((own.pop() if own else elapsed) / COUNT)
print(f"{COUNT} messages of {len(PAYLOAD)} bytes, medians of {ROUNDS} rounds, all by turns\n")
print("| what | ns per message | million per second |\n|---|--:|--:|")
for name, times in found.items():
    each = sorted(times)[ROUNDS // 2]
    print(f"| {name} | {each * 1e9:.1f} | {1e-6 / each:.1f} |")
