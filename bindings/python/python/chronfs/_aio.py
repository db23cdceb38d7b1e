"""Readers in asyncio."""

import asyncio

# Messages without a pause, after which other tasks have a turn.
_TURN = 128


async def messages(reader):
    """The messages of a reader as they come. Ends only with an exception, or when the task is cancelled."""
    loop = asyncio.get_running_loop()
    descriptor = reader.fileno()
    count = 0
    while True:
        found = reader.poll()
        if found is not None:
            yield found
            count += 1
            if count % _TURN == 0:
                await asyncio.sleep(0)
            continue
        readable = loop.create_future()
        loop.add_reader(descriptor, _wake, readable)
        try:
            await readable
        finally:
            loop.remove_reader(descriptor)


def _wake(readable):
    if not readable.done():
        readable.set_result(None)
