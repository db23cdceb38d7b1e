"""Batches as numpy arrays: imported when they are asked for."""

import numpy

from ._errors import GapError, InvalidInput


def column(memory, kind):
    return numpy.frombuffer(memory, dtype=kind) if len(memory) else numpy.empty(0, dtype=kind)


def _checked(dtype):
    dtype = numpy.dtype(dtype)
    if dtype.hasobject:
        raise InvalidInput("a payload can't be an array of Python objects")
    if not 0 < dtype.itemsize < 2**32:
        raise InvalidInput(f"the dtype's items have {dtype.itemsize} bytes; they need at least one")
    return dtype


def of_batch(batch, dtype, copy):
    """One item per message; see Batch.to_numpy."""
    dtype = _checked(dtype)
    found = None if copy else batch._strided(dtype.itemsize)
    if found is not None:
        memory, count, stride = found
        # ndarray: frombuffer knows no strides. It holds a reference to the memory, which is never unmapped.
        if dtype.subdtype is None:
            return numpy.ndarray((count,), dtype, memory, strides=(stride,))
        base, shape = dtype.subdtype
        inner = numpy.empty(0, dtype).strides[1:]
        return numpy.ndarray((count, *shape), base, memory, strides=(stride, *inner))
    if copy is False:
        raise ValueError("the messages don't follow each other at equal distances in one segment: a copy is needed")
    array = numpy.frombuffer(bytearray(batch._copied(dtype.itemsize)), dtype)
    return array


def of_scan(scan, dtype, copy):
    """One item per message; see Scan.to_numpy."""
    dtype = _checked(dtype)
    found = []
    # A segment has at most this many messages: each array is a whole one.
    for batch in scan.batches(1 << 25):
        if not hasattr(batch, "to_numpy"):
            raise GapError(f"an array can't hold gaps: {batch!r}; make the scan with on_gap=\"raise\" or a function")
        found.append(batch.to_numpy(dtype, copy=copy))
    if not found:
        return numpy.empty(0, dtype)
    if len(found) == 1:
        return found[0]
    if copy is False:
        raise ValueError("the messages lie in several segments: a copy is needed; batches() has them one by one")
    return numpy.concatenate(found)
