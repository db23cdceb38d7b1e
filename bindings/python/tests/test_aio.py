"""Readers in event loops."""

import asyncio
import selectors
import threading
import time

import pytest

import chronfs


def test_an_event_loop_reads_as_messages_come(queue):
    async def read(reader, count):
        seqs = []
        async for message in reader:
            seqs.append(message.seq)
            if len(seqs) == count:
                return seqs

    async def main():
        with queue.reader("a") as a, queue.reader("b") as b, queue.writer() as writer:
            tasks = [asyncio.create_task(read(reader, 300)) for reader in (a, b)]
            for i in range(300):
                writer.append(b"x")
                if i % 50 == 0:
                    await asyncio.sleep(0.002)
            return await asyncio.wait_for(asyncio.gather(*tasks), 30)

    assert asyncio.run(main()) == [list(range(1, 301))] * 2


def test_a_task_that_waits_can_be_cancelled(queue):
    async def main():
        with queue.reader("a") as reader, queue.writer() as writer:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(anext(aiter(reader)), 0.05)
            writer.append(b"later")
            found = await asyncio.wait_for(anext(aiter(reader)), 30)
            return bytes(found)

    assert asyncio.run(main()) == b"later"


def test_a_busy_reader_leaves_time_for_others(queue, fill):
    fill(b"x" for _ in range(1000))

    async def main():
        turns = []

        async def other():
            while True:
                turns.append(1)
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        with queue.reader("a") as reader:
            async for message in reader:
                if message.seq == 1000:
                    break
        task.cancel()
        return len(turns)

    assert asyncio.run(main()) > 3


def test_selectors_see_what_comes(queue):
    with queue.reader("r") as reader, queue.writer() as writer, selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        assert reader.fileno() == reader.fileno()
        while reader.poll() is not None:
            pass
        thread = threading.Thread(target=lambda: [time.sleep(0.05), writer.append(b"x")])
        thread.start()
        deadline = time.monotonic() + 30
        while (message := reader.poll()) is None:
            assert time.monotonic() < deadline
            selector.select(1)
        assert bytes(message) == b"x"
        thread.join()
