"""Errors that a user can mend, and the end of a run that was asked to stop; commands print them as one sentence."""

import errno
import re
from typing import Any

#: Error numbers of the system for a file that cannot grow.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """A setting, an input or a file that cannot be used; the message says in one sentence what would be right."""


def filled(owner: object, *names: str) -> Any:
    """A field that the experiment's data or length fill in, or a tuple of several fields.

    Args:
      owner: the dataclass that has the fields.
      names: names of the fields.

    Raises:
      UserError: a field is None, as the experiment was not resolved.
    """
    values = tuple(getattr(owner, name) for name in names)
    for name, value in zip(names, values, strict=True):
        if value is None:
            raise UserError(
                f"{type(owner).__name__}.{name} is None; give it, or resolve the experiment, which fills it in"
            )
    return values if len(names) > 1 else values[0]


def reason_of(error: BaseException) -> str:
    """Why a library failed, in one line; of a file without its path, which the message about it names already."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def number_of(count: int, noun: str, nouns: str | None = None) -> str:
    """A number with its noun, or with `nouns`, by default the noun and an s: 1 token, 2 tokens."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def of_callback(error: Exception) -> UserError | None:
    """The `UserError` of a function that a compiled program has called; None of any other error.

    JAX raises another error in its place, whose message ends with the message of the first.
    """
    found = re.search(r"\bUserError: (.*)", str(error))
    return None if found is None else UserError(found[1])


class Interrupted(Exception):
    """A run that was asked to stop, and has saved its state.

    Attributes:
      signal: the number of the signal that asked for it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number
