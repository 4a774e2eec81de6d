"""Errors that a user can mend, and the end of a run that was asked to stop; commands print them as one sentence."""

import errno

#: Error numbers of the system for a file that cannot grow.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """A setting, an input or a file that cannot be used; the message says in one sentence what would be right."""


class Interrupted(Exception):
    """A run that was asked to stop, and has saved its state.

    Attributes:
      signal: the number of the signal that asked for it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number
