"""The exceptions of chronfs. Each has `path`, the file or directory that it concerns (None if there is none)."""


class Error(Exception):
    """Any error of chronfs."""

    path: str | None = None


class IoError(Error, OSError):
    """A system call failed: see `errno`."""


class NotAQueue(Error):
    """The path does not hold a queue."""


class NoSuchReader(Error):
    """No reader of that name is registered."""


class NoSuchPosition(Error):
    """There is no such position in the queue."""


class AlreadyExists(Error):
    """A queue exists there already."""


class Busy(Error):
    """Another process uses it: `pid` and `command`, where it can be identified. Try again later."""

    pid: int | None = None
    command: str | None = None


class Locked(Busy):
    """Another writer holds the queue."""


class ReaderInUse(Busy):
    """Another process, or another object in this one, uses the reader."""


class SettingsLocked(Busy):
    """Another process is changing the settings."""


class QueueFull(Error):
    """The queue's limit, `max_bytes`, is reached."""

    max_bytes: int | None = None


class WrongRole(Error):
    """The queue is a standby, or is not."""


class InvalidInput(Error, ValueError):
    """An argument is not allowed, always or in this queue."""


class TooLarge(InvalidInput):
    """The payload is longer than the queue takes: `max_len` bytes."""

    max_len: int | None = None


class Damaged(Error):
    """A file's contents are not what they should be, from byte `offset` on."""

    offset: int | None = None


class Unsupported(Error):
    """A file was written by a newer chronfs."""


class Poisoned(Error):
    """The writer saw a failure after which it can't vouch for what it writes: open a new one."""


class Forked(Error):
    """It was opened by the process that this one was forked from: open it again here."""


class Stopped(Error):
    """The wait was ended by `stop()` or `close()`."""


class Closed(Error, ValueError):
    """It has been closed."""


class GapError(Error):
    """Messages are missing: `gap`. Reading goes on after them."""

    gap = None


for _class in list(globals().values()):
    if isinstance(_class, type):
        _class.__module__ = "chronfs"
