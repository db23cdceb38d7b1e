"""Times and durations as people write them."""

import re
import time
from datetime import datetime, timedelta, timezone

from ._errors import InvalidInput

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86400 * 10**9}
_SPAN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s|m|h|d)")
_MAX = 2**64 - 1


def _timedelta_ns(span):
    return ((span.days * 86400 + span.seconds) * 10**6 + span.microseconds) * 1000


def _span_ns(text):
    """What "1h 30m" means; None if it is not a duration."""
    total, at = 0, 0
    while at < len(text.rstrip()):
        part = _SPAN.match(text, at)
        if part is None:
            return None
        number, unit = part.groups()
        total += int(number) * _UNITS[unit] if number.isdigit() else round(float(number) * _UNITS[unit])
        at = part.end()
    return total if at else None


def duration_ns(value):
    """Nanoseconds of a number of seconds, a timedelta, or text as "15m"."""
    if isinstance(value, timedelta):
        ns = _timedelta_ns(value)
    elif isinstance(value, str):
        ns = _span_ns(value)
        if ns is None:
            raise InvalidInput(f"{value!r} is not a duration; write for example 500ms, 15m, 1h30m, 7d")
    elif isinstance(value, int):
        ns = value * 10**9
    else:
        seconds = float(value)
        if seconds != seconds:
            raise InvalidInput("nan is not a duration")
        ns = _MAX if seconds > _MAX / 1e9 else round(seconds * 1e9)
    if ns < 0:
        raise InvalidInput(f"{value!r} is negative")
    return min(ns, _MAX)


def time_ns(value):
    """Nanoseconds since the epoch of: ns, a datetime (naive ones are local time), text in ISO 8601, or how long ago it
    was, as a timedelta or as text like "15m"."""
    if isinstance(value, bool):
        raise TypeError("a time is nanoseconds, a datetime, a timedelta or text, not bool")
    if isinstance(value, datetime):
        return _datetime_ns(value)
    if isinstance(value, timedelta):
        return max(time.time_ns() - duration_ns(value), 0)
    if isinstance(value, str):
        span = _span_ns(value)
        if span is not None:
            return max(time.time_ns() - span, 0)
        try:
            return _datetime_ns(datetime.fromisoformat(value))
        except ValueError:
            text = f"{value!r} is not a time; write for example 15m (ago), 2026-01-31T12:00:00+00:00, or nanoseconds"
            raise InvalidInput(text) from None
    ns = value.__index__() if hasattr(value, "__index__") else None
    if ns is None:
        kind = type(value).__name__
        raise TypeError(f"a time is nanoseconds since the epoch, a datetime, a timedelta or text, not {kind}")
    if not 0 <= ns <= _MAX:
        raise InvalidInput(f"{ns} ns since the epoch is out of range")
    return ns


def _datetime_ns(value):
    ns = _timedelta_ns((value if value.tzinfo else value.astimezone()) - _EPOCH)
    if ns < 0:
        raise InvalidInput(f"{value} is before 1970")
    return min(ns, _MAX)


def from_ns(ns):
    """The datetime in UTC, cut to microseconds."""
    return _EPOCH + timedelta(microseconds=ns // 1000)
