"""Directories in buckets (gs://, s3://, and what else fsspec knows), through local copies.

Code reads and writes files of a local disk.  A directory of a run in a bucket is mirrored: its small files lie in a
temporary folder of the process, and files that change are uploaded.  Checkpoints are not among them; each process
writes its own part of them into the bucket (genjax/training/bucket_store.py).  Data in a bucket are copied once to the
user's cache, and later only files that have changed.

An object is written whole or not at all, and is seen by everyone as soon as it is written; nothing else is taken for
granted of a bucket.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import importlib
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from genjax.errors import UserError, reason_of

#: Copies of data in buckets.
DATA_FOLDER = Path("~/.cache/genjax/data")
#: Packages of fsspec's schemes, which the extra `buckets` has or which are installed by name.
PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}
_EXTRA = {"gcsfs", "s3fs"}
#: Folders of a run that a mirror does not read: they are written only, or are read where they are.
NOT_READ = ("checkpoints", "damaged_checkpoints", "tensorboard", "profile")
#: Seconds between two uploads of changed files, at least.
PUSH_EVERY = 30.0
#: A lock is renewed so often, and is free when its owner has not renewed it for so long; seconds.
RENEW_EVERY, LEASE = 10.0, 45.0
_LOCK = "lock.json"
#: The file that every run has.
_RUN_FILE = "config.json"
_PREFIX = "genjax-bucket-"

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def _meanwhile(act: Callable[[], float], wait: float, name: str) -> Iterator[None]:
    """Acts again and again in a thread; `act` returns the seconds until the next time, the first wait is `wait`."""
    ended = threading.Event()

    def go_on() -> None:
        left = wait
        while not ended.wait(left):
            left = act()

    thread = threading.Thread(target=go_on, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _scheme(path: str | Path) -> str:
    """The scheme of a path, "" for a local path; `Path` makes one slash of two."""
    scheme, colon, _ = str(path).partition(":/")
    return scheme.lower() if colon and scheme.isalnum() and len(scheme) > 1 else ""


def is_bucket(path: str | Path) -> bool:
    """Whether a path is in a bucket, and not on a disk."""
    return bool(_scheme(path))


def on_disk(path: str | Path, flag: str) -> Path:
    """A path that must be on a disk, with ~ expanded.

    Raises:
      UserError: it is in a bucket.
    """
    if is_bucket(path):
        raise UserError(f"{flag}={url_of(path)} is in a bucket, and this command works in a folder on a disk; name one")
    return Path(path).expanduser()


def url_of(path: str | Path) -> str:
    """The address of a bucket's directory in one form, `s3://bucket/run`."""
    return f"{_scheme(path)}://{str(path).partition(':/')[2].strip('/')}"


def filesystem(path: str | Path) -> Any:
    """The file system of a bucket, of fsspec.

    Raises:
      UserError: the scheme is not known, or its package is not installed.
    """
    scheme, package = _scheme(path), PACKAGES.get(_scheme(path))
    if package is None:
        raise UserError(f"{url_of(path)} is in no bucket that is known: schemes are {', '.join(sorted(PACKAGES))}")
    try:
        importlib.import_module(package)
    except ImportError:
        wanted = "'genjax[buckets]'" if package in _EXTRA else package
        raise UserError(f"{url_of(path)} needs the package {package}: pip install {wanted}") from None
    import fsspec  # which these packages bring

    # Listings are not kept: other processes write too.
    return fsspec.filesystem(scheme, use_listings_cache=False)


def listing(files: Any, url: str) -> dict[str, dict[str, Any]]:
    """What is below an address, by relative path; nothing if there is no such directory."""
    root = files._strip_protocol(url).rstrip("/")
    with contextlib.suppress(FileNotFoundError):
        found = files.find(root, detail=True)
        return {name.removeprefix(root + "/"): info for name, info in found.items() if name.startswith(root + "/")}
    return {}


def mark_of(info: dict[str, Any]) -> str:
    """What a bucket tells of the content of an object: a digest of its own, such as the ETag."""
    known = (info.get(name) for name in ("ETag", "md5Hash", "crc32c", "etag", "mtime"))
    return str(next((mark for mark in known if mark), ""))


def folder(path: str | Path, only: str = "") -> Path:
    """The path of data for reading: a local path with ~ expanded, or the copy of a directory or file in a bucket.

    The copy is brought up to date by the first call of a process.

    Args:
      path: what the user names.
      only: the folder inside of it that is needed, if not all.

    Raises:
      UserError: the bucket cannot be read, or has nothing there.
    """
    if not is_bucket(path):
        return Path(path).expanduser()
    asked = url_of(path), only
    if asked not in _copied:
        _copied[asked] = _copy(*asked)
    return _copied[asked]


_copied: dict[tuple[str, str], Path] = {}


def _copy(url: str, only: str) -> Path:
    files = filesystem(url)
    place = DATA_FOLDER.expanduser() / hashlib.sha256(url.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    known_file = place.with_name(f"{place.name}.{only.replace('/', '.')}.json")
    with known_file.with_suffix(".lock").open("w") as lock:
        # Other processes of this machine wait; some disks have no locks, and there each file is still replaced whole.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        single = False
        try:
            below = f"{only}/" if only else ""
            found = {below + name: info for name, info in listing(files, f"{url}/{only}".rstrip("/")).items()}
            if not found and not only and files.isfile(url):
                single, found = True, {PurePosixPath(url).name: files.info(url)}
        except Exception as error:
            raise UserError(f"{url} cannot be read ({reason_of(error)})") from None
        if not found and not only:
            raise UserError(f"there is nothing at {url}")
        known = json.loads(known_file.read_text()) if known_file.is_file() else {}
        marks = {name: f"{info['size']} {mark_of(info)}" for name, info in found.items() if info["type"] == "file"}
        changed = [name for name in marks if known.get(name) != marks[name] or not (place / name).is_file()]
        for name in set(known) - set(marks):
            (place / name).unlink(missing_ok=True)
        _download(files, [(url if single else f"{url}/{name}", place / name) for name in changed])
        _replace(known_file, json.dumps(marks))
    return place / PurePosixPath(url).name if single else place


def _download(files: Any, pairs: list[tuple[str, Path]]) -> None:
    parts = [target.with_name(target.name + ".part") for _, target in pairs]
    for part in parts:
        part.parent.mkdir(parents=True, exist_ok=True)
    if not pairs:
        return
    try:
        files.get([source for source, _ in pairs], [str(part) for part in parts])
    except Exception as error:
        raise UserError(f"{pairs[0][0]} and what lies beside it cannot be read ({reason_of(error)})") from None
    for part, (_, target) in zip(parts, pairs):
        part.replace(target)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


# ----------------------------------------------------------------------------------------------------------------------
# Directories of runs

_mirrors: dict[str, Mirror] = {}


def workdir(path: str | Path) -> Path:
    """The directory of a run: a local path with ~ expanded, or the mirror of a directory in a bucket.

    Raises:
      UserError: the bucket cannot be read.
    """
    if not is_bucket(path):
        return Path(path).expanduser()
    url = url_of(path)
    if url not in _mirrors:
        _mirrors[url] = Mirror(url)
    return _mirrors[url].folder


def mirror_of(path: str | Path) -> Mirror | None:
    """The mirror whose folder a path is, or None."""
    return next((mirror for mirror in _mirrors.values() if mirror.folder == Path(path)), None)


def shown(path: str | Path) -> str:
    """A directory as the user named it: the address of the bucket for a mirror."""
    mirror = mirror_of(path)
    return str(path) if mirror is None else mirror.url


def push_all() -> list[str]:
    """Uploads what has changed in all mirrors; returns the addresses of the files."""
    return [f"{mirror.url}/{name}" for mirror in _mirrors.values() for name in mirror.push()]


class Mirror:
    """The small files of a directory in a bucket, in a folder of this process.

    Attributes:
      url: address of the directory.
      folder: local folder, which is removed when the process ends, or by the next process if it was killed.
      files: file system of the bucket.
      lease: the lock on the directory that this process holds, or None.
    """

    def __init__(self, url: str) -> None:
        self.url, self.files = url, filesystem(url)
        self.lease: Lease | None = None
        _remove_left_over()
        # Resolved, as it is compared with paths that may be.
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        self._held = (self.folder / ".held").open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX)
        atexit.register(self._remove)
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._pushing = threading.Lock()
        self.pull()

    def _remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def pull(self) -> None:
        """Downloads all files of a run but checkpoints and what is written only.

        Raises:
          UserError: the bucket cannot be read.
        """
        try:
            # What is no run may be the folder of many.
            is_run = self.files.exists(f"{self.url}/{_RUN_FILE}")
            found = listing(self.files, self.url) if is_run else {}
        except Exception as error:
            raise UserError(f"{self.url} cannot be read ({reason_of(error)})") from None
        wanted = [
            name
            for name, info in found.items()
            if info["type"] == "file" and name.partition("/")[0] not in (*NOT_READ, _LOCK)
        ]
        _download(self.files, [(f"{self.url}/{name}", self.folder / name) for name in wanted])
        self._uploaded |= self._changed()

    def _changed(self) -> dict[str, tuple[int, int]]:
        """Sizes and times of files that have changed since they were uploaded."""
        found = {}
        for path in self.folder.rglob("*"):
            if path.name.startswith(".") or path.suffix in (".new", ".part") or not path.is_file():
                continue
            with contextlib.suppress(FileNotFoundError):
                stat, name = path.stat(), path.relative_to(self.folder).as_posix()
                if self._uploaded.get(name) != (stat.st_size, stat.st_mtime_ns):
                    found[name] = (stat.st_size, stat.st_mtime_ns)
        return found

    def push(self) -> list[str]:
        """Uploads files that have changed, and returns their names.

        Raises:
          UserError: the bucket cannot be written.
        """
        with self._pushing:
            changed = self._changed()
            if changed:
                names = sorted(changed)
                try:
                    self.files.put([str(self.folder / n) for n in names], [f"{self.url}/{n}" for n in names])
                except Exception as error:
                    raise UserError(f"{self.url} could not be written ({reason_of(error)})") from None
                # A file that has grown meanwhile has another size and time, and is uploaded again.
                self._uploaded |= changed
            return sorted(changed)

    def check_writable(self) -> None:
        """Raises UserError if the bucket cannot be written."""
        probe = f"{self.url}/.probe-{socket.gethostname()}-{os.getpid()}"
        try:
            self.files.pipe_file(probe, b"genjax")
            self.files.rm_file(probe)
        except Exception as error:
            raise UserError(
                f"--workdir={self.url} cannot be written ({reason_of(error)}); give a bucket that exists, and the "
                "rights to write it"
            ) from None

    @contextlib.contextmanager
    def kept_up(self) -> Iterator[None]:
        """Uploads changed files from time to time, and at the end."""

        def push() -> float:
            began = time.monotonic()
            try:
                self.push()
            except UserError as error:
                _logger.warning("%s; it is tried again", error)
            # At most a twentieth of the time, also where pictures and traces are large.
            return max(PUSH_EVERY, 20 * (time.monotonic() - began))

        try:
            with _meanwhile(push, PUSH_EVERY, "uploads"):
                yield
        finally:
            self.push()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the directory for one run.

        Raises:
          UserError: another run holds the lock.
        """
        self.lease = Lease(self.files, f"{self.url}/{_LOCK}", self.url)
        try:
            with self.lease.held():
                yield
        finally:
            self.lease = None


def _remove_left_over() -> None:
    """Removes folders of mirrors whose processes were killed: nobody holds their locks."""
    for place in Path(tempfile.gettempdir()).glob(_PREFIX + "*"):
        with contextlib.suppress(OSError), (place / ".held").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(place, ignore_errors=True)


class Lease:
    """A lock that ends when its owner does not renew it: a bucket does not know whose process has died.

    An owner on another machine counts as dead when the lock has not changed for `LEASE` seconds of the waiting
    process's own clock.  An owner that lost the lock, say because its machine stood still, finds another name in it,
    and completes no further checkpoint.
    """

    def __init__(self, files: Any, path: str, place: str) -> None:
        self._files, self._path, self._place = files, path, place
        self._name = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"
        self._lost = False
        self._count = 0

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._files.cat_file(self._path))
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def _content(self) -> bytes:
        self._count += 1
        content = {"name": self._name, "host": socket.gethostname(), "process": os.getpid(), "count": self._count}
        return json.dumps(content).encode()

    def _take(self) -> None:
        """Takes the lock, from a dead owner too.

        Raises:
          UserError: its owner lives.
        """
        held = self._read()
        if held is not None and not _is_dead_here(held):
            _logger.warning("%s is locked by %s; waiting %g s for a sign of life", self._place, _owner(held), LEASE)
            began = time.monotonic()
            while time.monotonic() - began < LEASE:
                time.sleep(min(1.0, LEASE / 5))
                now = self._read()
                if now is None:
                    break
                if now != held:
                    raise UserError(
                        f"{self._place} is being trained in by {_owner(now)}; wait for it or end it, "
                        "or give another --workdir"
                    )
        if held is not None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path)
        # Two processes that start at once: only one creates the object.
        with contextlib.suppress(FileExistsError):
            self._files.pipe_file(self._path, self._content(), mode="create")
        now = self._read() or {}
        if now.get("name") != self._name:
            raise UserError(
                f"{self._place} is being trained in by {_owner(now)}; wait for it or end it, or give another --workdir"
            )

    def check(self) -> None:
        """Raises UserError if another run has taken the lock."""
        if not self._lost:
            self._lost = (self._read() or {}).get("name") != self._name
        if self._lost:
            raise UserError(f"another run has taken {self._place}, as this one gave no sign of life for {LEASE:g} s")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds and renews the lock.

        Raises:
          UserError: another run holds it.
        """
        self._take()

        def renew() -> float:
            # What the bucket cannot do just now is tried again at the next turn.
            with contextlib.suppress(Exception):
                self.check()
                self._files.pipe_file(self._path, self._content())
            return RENEW_EVERY

        try:
            with _meanwhile(renew, RENEW_EVERY, "lock"):
                yield
        finally:
            with contextlib.suppress(Exception):
                self.check()
                self._files.rm_file(self._path)


def _owner(held: dict[str, Any]) -> str:
    return f"process {held.get('process', '?')} on {held.get('host', '?')}"


def _is_dead_here(held: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine that lives no more."""
    process = held.get("process")
    if held.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    if process == os.getpid():
        # A container that was started again gives its processes the same numbers.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
