"""A live queue in asyncio: one task appends, another one reads what comes, and a third one keeps the time.

    python bindings/python/examples/live.py
"""

import asyncio
import tempfile
from pathlib import Path

import chronfs


async def feed(queue, count):
    with queue.writer() as writer:
        for i in range(count):
            writer.append(b"tick %d" % i, type=1)
            await asyncio.sleep(0.01)
        writer.append(b"", type=2)


async def follow(queue):
    with queue.reader("follower") as reader:
        async for message in reader:
            if message.type == 2:
                return reader.stats()["received"]
            print(message.seq, message.time.time(), bytes(message).decode())
            reader.commit()


async def main():
    with tempfile.TemporaryDirectory() as directory:
        queue = chronfs.Queue(Path(directory) / "ticks", create=True)
        received, _ = await asyncio.wait_for(asyncio.gather(follow(queue), feed(queue, 20)), 60)
        print(received, "messages received")
        return received


if __name__ == "__main__":
    assert asyncio.run(main()) == 21
