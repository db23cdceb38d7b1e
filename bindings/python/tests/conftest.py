import contextlib
import subprocess
import sys
import textwrap
import time

import pytest

import chronfs


@pytest.fixture
def path(tmp_path):
    return tmp_path / "queue"


@pytest.fixture
def queue(path):
    """A queue with small segments."""
    return chronfs.Queue(path, create=True, segment_size=1 << 16)


@pytest.fixture
def fill(queue):
    """Appends messages of the payloads given."""

    def append(payloads, type=0):
        with queue.writer() as writer:
            writer.extend(payloads, type)

    return append


def until(condition, what, seconds=30):
    """Polls until a condition holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"timed out: {what}"
        time.sleep(0.005)
    return found


@contextlib.contextmanager
def program(text, *args):
    """Runs a Python program, which is killed at the end at the latest."""
    command = [sys.executable, "-c", textwrap.dedent(text), *map(str, args)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def run(text, *args):
    """Runs a Python program to its end; returns its exit code, output and errors."""
    with program(text, *args) as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err
