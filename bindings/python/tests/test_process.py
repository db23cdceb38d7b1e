"""What surrounds a reader: threads, signals, forks, the end of the interpreter, files that are cut short."""

import os
import signal
import threading
import time

import pytest

import chronfs
from conftest import program, run, until


def test_a_reader_blocks_until_something_comes(queue):
    found = []
    with queue.reader("r") as reader, queue.writer() as writer:
        thread = threading.Thread(target=lambda: found.append(bytes(next(reader))))
        thread.start()
        until(lambda: reader.stats()["waits"] > 0, "the thread waits")
        writer.append(b"hello")
        thread.join(30)
    assert found == [b"hello"]


@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_blocked_reader_is_ended_by_another_thread(queue, how):
    raised = []

    def read():
        try:
            next(reader)
        except chronfs.Error as error:
            raised.append(error)

    reader = queue.reader("r")
    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: reader.stats()["waits"] > 0, "the thread waits")
    getattr(reader, how)()
    thread.join(30)
    assert isinstance(raised[0], (chronfs.Stopped, chronfs.Closed))


def test_threads_share_readers_and_writers(queue):
    count, threads = 2000, 4
    seqs, lock = [], threading.Lock()
    with queue.writer() as writer, queue.reader("r") as reader:

        def write():
            for _ in range(count):
                writer.append(b"x" * 100)

        def read():
            mine = []
            while (message := reader.poll(timeout=1.0)) is not None:
                mine.append((message.seq, len(message)))
                reader.lag() if message.seq % 500 == 0 else reader.commit()
            with lock:
                seqs.extend(mine)

        workers = [threading.Thread(target=work) for work in [write, read] * threads]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert sorted(seqs) == [(seq, 100) for seq in range(1, count * threads + 1)]


def test_others_run_while_a_reader_waits(queue):
    reader, found = queue.reader("r"), []
    thread = threading.Thread(target=lambda: found.append(reader.wait(60)))
    thread.start()
    until(lambda: reader.stats()["waits"] > 0, "the thread waits")
    assert reader.poll() is None and reader.lag() == 0, "this thread has the GIL, and its turn with the reader"
    with queue.writer() as writer:
        writer.append(b"x")
    thread.join(30)
    assert found == [True]


def test_ctrl_c_ends_a_wait(path, queue):
    text = """
        import chronfs, sys
        reader = chronfs.Queue(sys.argv[1]).reader("r")
        try:
            print("open", flush=True)
            next(reader)
        except KeyboardInterrupt:
            print("interrupted")
    """
    with program(text, path) as other:
        assert other.stdout.readline() == "open\n"
        other.send_signal(signal.SIGINT)
        out, err = other.communicate(timeout=30)
    assert (out, err) == ("interrupted\n", "")


def test_signal_handlers_run_during_a_wait(queue):
    hits = []
    before = signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with queue.reader("r") as reader:
            until(lambda: reader.wait(0.2) is False and hits, "the handler runs")
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_removed_queue_ends_a_wait(queue):
    import shutil

    reader = queue.tailer()
    shutil.rmtree(queue.path)
    with pytest.raises(chronfs.Error, match="removed"):
        until(lambda: reader.wait(10), "the reader notices")


FORK = """
    import os, sys, threading, time, chronfs
    queue = chronfs.Queue(sys.argv[1])
    writer, reader, tailer = queue.writer(), queue.reader("r"), queue.tailer()
    writer.append(b"one")
    message = next(tailer)
    {before}
    pid = os.fork()
    if pid == 0:
        refused = 0
        for call in (lambda: writer.append(b"child"), writer.flush_sync, reader.poll, reader.commit, lambda: reader.wait(1)):
            try:
                call()
            except chronfs.Forked:
                refused += 1
        assert bytes(message) == b"one"
        again = chronfs.Queue(sys.argv[1])
        assert [bytes(m) for m in again.scan()] == [b"one"]
        try:
            again.writer()
        except chronfs.Locked as error:
            refused += error.pid == os.getppid()
        {how}
    _, status = os.waitpid(pid, 0)
    assert writer.append(b"two") == 2
    {after}
    assert bytes(next(reader)) == b"{next}"
    print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("how", ["os._exit(refused)", "writer = reader = tailer = None; sys.exit(refused)", "sys.exit(refused)"])
def test_a_forked_child_refuses_and_disturbs_nothing(queue, path, how):
    code, out, err = run(FORK.format(before="", how=how, after="", next="one"), path)
    assert (code, out, err) == (0, "6\n", "")
    assert [bytes(message) for message in queue.scan()] == [b"one", b"two"]


def test_a_child_forked_while_another_thread_waits_refuses(queue, path):
    before = 'thread = threading.Thread(target=lambda: [next(reader), reader.wait(60)]); thread.start()'
    before += '\n    while not reader.stats()["waits"]: time.sleep(0.01)'
    code, out, err = run(FORK.format(before=before, how="os._exit(refused)", after="thread.join()", next="two"), path)
    assert (code, out, err) == (0, "6\n", "")


@pytest.mark.parametrize("what", ["next(reader)", "reader.wait()", "writer.append(b'')"])
def test_the_interpreter_ends_with_a_blocked_thread(tmp_path, what):
    text = """
        import chronfs, sys, threading, time
        queue = chronfs.Queue(sys.argv[1], create=True, segment_size=1 << 16, max_bytes=1 << 16)
        reader, writer = queue.reader("r", start="end"), queue.writer(when_full=600)
        if "append" in sys.argv[2]:
            quick = threading.Thread(target=lambda: [writer.append(bytes(1000)) for _ in range(1000)], daemon=True)
            quick.start()
            last = 0
            while True:
                time.sleep(0.1)
                if last == (last := writer.next_seq):
                    break
        else:
            threading.Thread(target=lambda: eval(sys.argv[2]), daemon=True).start()
            while not reader.stats()["waits"]:
                time.sleep(0.01)
        print("ends")
    """
    for _ in range(3):
        code, out, err = run(text, tmp_path / "q", what)
        assert (code, out, err) == (0, "ends\n", "")


def test_objects_outlive_the_interpreters_order_of_things(queue, fill, path):
    fill(b"%0100d" % i for i in range(2000))
    text = """
        import chronfs, numpy, pyarrow, sys
        queue = chronfs.Queue(sys.argv[1])
        class Late:
            def __del__(self):
                assert bytes(message)[-1:] == b"9" and array[3] and table.num_rows == 2000
        message = list(queue.scan())[9]
        array = next(iter(queue.scan().batches(100))).to_numpy("S100")
        table = pyarrow.table(queue.scan())
        sys.late = Late()
        reader = queue.reader("r")
        descriptor = reader.fileno()
    """
    assert run(text, path)[::2] == (0, "")


CUT = """
    import chronfs, faulthandler, os, sys
    queue = chronfs.Queue(sys.argv[1])
    {first}
    reader = queue.reader("r")
    next(reader)
    {second}
    path = os.path.join(sys.argv[1], "000000000.q")
    os.truncate(path, 4096)
    held = None
    try:
        while (message := reader.poll()) is not None:
            held = bytes(message)
    except chronfs.Error as error:
        print(type(error).__name__)
    print("alive")
"""


@pytest.mark.parametrize("order", ["", "first", "second"])
def test_a_file_that_is_cut_short_kills_nobody(queue, fill, path, order):
    fill(bytes(1000) for _ in range(40))
    parts = {"first": "", "second": ""} | ({order: "faulthandler.enable()"} if order else {})
    code, out, err = run(CUT.format(**parts), path)
    assert code == 0 and out.splitlines()[-1] == "alive", err


def test_a_fault_of_others_is_still_reported(queue, path, tmp_path):
    text = """
        import chronfs, faulthandler, mmap, os, sys
        {first}
        reader = chronfs.Queue(sys.argv[1]).reader("r")
        {second}
        with open(sys.argv[2], "wb+") as file:
            file.truncate(8192)
            memory = mmap.mmap(file.fileno(), 8192)
            file.truncate(0)
            memory[5000]
    """
    for order in ("first", "second"):
        parts = {"first": "", "second": ""} | {order: "faulthandler.enable()"}
        code, out, err = run(text.format(**parts), path, tmp_path / "file")
        assert code == -signal.SIGBUS and "Fatal Python error: Bus error" in err
