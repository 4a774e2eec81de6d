"""Record of a run's training files, in its directory: a resumed run must have the same training files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from genjax.data.base import DataError
from genjax.data.files import read_utf8, write_whole

TRAINING_FILES = "training_files.json"


def save_training_files(workdir: Path, files: Mapping[Path, Sequence[Path]]) -> None:
    """Writes number and digest of the training files into a run's directory, if they are not there yet.

    The digest is of the paths below their folders and of the sizes, so that folders can be moved.

    Args:
      workdir: directory of the run.
      files: the training files of each folder.

    Raises:
      DataError: the run was trained on other files.
    """
    digest = hashlib.sha256()
    for root, paths in files.items():
        for path in sorted(paths):
            line = f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\n"
            digest.update(line.encode(errors="surrogateescape"))
    content = {"num_files": sum(map(len, files.values())), "digest": digest.hexdigest()}
    record = Path(workdir) / TRAINING_FILES
    if not record.is_file():
        write_whole(record, json.dumps(content, indent=1) + "\n")
        return
    earlier = json.loads(read_utf8(record))
    if earlier != content:
        raise DataError(
            f"the {content['num_files']} training files of {' and '.join(map(str, files))} are not the "
            f"{earlier['num_files']} that the run in {workdir} was trained on, by number, name or size; bring back the "
            f"files of then, take another --workdir (with --training.init_from={workdir} it starts from this run), "
            f"or remove {record} to go on with the files of now"
        )
