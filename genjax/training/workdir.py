"""The working directory of a run: made, locked for one run, and full."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from genjax import buckets
from genjax.config import ConfigError
from genjax.errors import FULL_DISK
from genjax.training.local_store import can_hold

LOCK_FILE = "lock"

_logger = logging.getLogger(__name__)


def prepare_workdir(workdir: str | Path) -> Path:
    """Makes the working directory, or the mirror of one in a bucket, and checks that it can be written.

    Raises:
      ConfigError: it cannot.
    """
    if buckets.is_bucket(workdir):
        if glob.has_magic(str(workdir)):
            raise ConfigError(f"--workdir={workdir}: give a directory without the characters * ? [")
        folder = buckets.workdir(workdir)
        buckets.mirror_of(folder).check_writable()
        return folder
    workdir = Path(workdir).expanduser()
    if not can_hold(workdir):
        raise ConfigError(
            f"--workdir={workdir}: checkpoints in {workdir.resolve()} would lack their arrays, "
            "as orbax takes the characters * ? [ of a path for a pattern; give a directory without them"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A different name in each process, as several processes of a run check at once.
        with tempfile.NamedTemporaryFile(dir=workdir) as probe:
            probe.write(b"genjax")
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written ({error.strerror}); give a directory that can"
        ) from None
    return workdir


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks a working directory for one run; the system releases the lock when the process ends in any way.

    The directory of a bucket is kept up to date while it is locked.

    Raises:
      UserError: another run holds it.
    """
    if (mirror := buckets.mirror_of(workdir)) is not None:
        with mirror.locked(), mirror.kept_up():
            yield
        return
    with (workdir / LOCK_FILE).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"{workdir} is being trained in by {file.read().strip() or 'another process'}; wait for it or end it, "
                "or give another --workdir"
            ) from None
        except OSError as error:
            # Some network file systems have no locks.
            _logger.warning("%s cannot be locked (%s): do not start two runs in it", workdir, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


@contextlib.contextmanager
def full_disk_told(workdir: Path) -> Iterator[None]:
    """Turns the system's errors about a full disk into a ConfigError."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise ConfigError(
            f"{error.filename or workdir} could not be written ({error.strerror}); the checkpoints are untouched, "
            "and the same command goes on from the last of them"
        ) from None
