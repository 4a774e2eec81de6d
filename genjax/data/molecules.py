"""Molecules as SMILES strings, one an example: MOSES, a file of the user, or a small embedded set
that is put together.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets
from genjax.data.base import ArrayExamples, Data, DataError, Examples, check_split, split_indices
from genjax.data.files import lines_of, with_ending, write_whole
from genjax.data.text.base import TOKENIZER_FILE
from genjax.data.text.tasks import split_of
from genjax.data.text.tokenizer import Tokenizer, read_tokenizer, train_tokenizer

_CORES = (
    "c1ccc({})cc1{}",
    "c1cc({})ccc1{}",
    "C1CCC({})CC1{}",
    "C({})CCN{}",
    "c1cnc({})nc1{}",
    "C(=O)({})N{}",
    "O({})C{}",
)
#: Training molecules of MOSES that are held out for validation, at most a tenth.
_MOSES_HELD_OUT = 10_000
_GROUPS = ("C", "CC", "O", "OC", "N", "C#N", "C(=O)O", "C(=O)N", "F", "Cl", "C(F)(F)F", "C1CC1", "c1ccccc1", "CC(C)C")


@functools.cache
def embedded_smiles() -> tuple[str, ...]:
    """Cores with two groups in every combination, 1372 molecules."""
    return tuple(core.format(*pair) for core, pair in itertools.product(_CORES, itertools.product(_GROUPS, repeat=2)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Molecules(Data):
    """SMILES strings as `tokens` int32 [B, T + 1]: the end token, the symbols, the end token, and padding; with `mask`.

    Attributes:
      name: combinations, which is embedded; moses for the files of the benchmark at data.dir, where validation takes
        always the same 10000 of the training molecules; or file for the user's file at data.dir, with one SMILES a line
        or in a column of a table, see `read_smiles`.
      tokenizer: characters, or smiles with one token for each bracket atom, Cl, Br and ring number.
      tokenizer_file: a tokenizer to use instead, as a run saves it.
      max_symbols: molecules with more symbols are left out; None keeps all.
      max_molecules: number of molecules that are kept of each split, the first ones; None keeps all.
    """

    name: str = "combinations"
    tokenizer: Literal["characters", "smiles"] = "characters"
    tokenizer_file: str | None = None
    max_symbols: int | None = None
    max_molecules: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("max_symbols", "max_molecules"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least 1, or none")

    def smiles(self, split: str) -> list[str]:
        """The strings of a split."""
        match self.name:
            case "combinations":
                known = embedded_smiles()
                strings = [known[i] for i in split_indices(len(known), split, self.name)]
            case "moses":
                check_split(split, ("train", "validation", "test", "test_scaffolds"), "moses")
                if split in ("train", "validation"):
                    whole = self._moses("train")
                    order = np.random.default_rng(0).permutation(len(whole))
                    held_out = min(_MOSES_HELD_OUT, len(whole) // 10)
                    chosen = order[held_out:] if split == "train" else order[:held_out]
                    strings = [whole[i] for i in np.sort(chosen)]
                else:
                    strings = self._moses(split)
            case "file":
                strings = read_smiles(self.dir)
                check_split(split, ("train", "validation", "test"), f"file {self.dir}")
                # By a hash, so that a molecule keeps its split when other molecules come and go, and is in one split
                # only.
                strings = [string for string in strings if split_of(string) == split]
            case _:
                raise DataError(f"data.name={self.name} is not a set of molecules: combinations, moses, file")
        return strings[: self.max_molecules]

    def _moses(self, file: str) -> list[str]:
        return read_smiles(str(buckets.folder(self.dir or ".") / f"{file}.csv.gz"))

    @property
    def canonical(self) -> bool:
        """Whether the set writes its molecules as RDKit's canonical SMILES."""
        return self.name == "moses"

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer of the symbols in all splits."""
        return _tokenizer(self)

    def load_split(self, split: str) -> Examples:
        tokenizer, length = self.make_tokenizer(), self.spec()["sequence_length"]
        encoded = [tokenizer.encode(s) for s in self.smiles(split)]
        encoded = [ids for ids in encoded if len(ids) < length]
        tokens = np.full(
            (len(encoded), length + 1), tokenizer.vocab_size, np.uint8 if tokenizer.vocab_size < 256 else np.uint16
        )
        sizes = np.array([len(ids) for ids in encoded], np.int32)
        if len(encoded):
            inside = np.arange(length + 1)[None]
            tokens[(inside > 0) & (inside <= sizes[:, None])] = np.concatenate(encoded)
        return ArrayExamples({"tokens": tokens, "num_symbols": sizes})

    def spec(self) -> dict[str, Any]:
        """vocab_size, sequence_length (symbols and the end), start_token and end_token."""
        tokenizer = self.make_tokenizer()
        size = tokenizer.vocab_size
        length = self.max_symbols or _longest(self)
        return {"vocab_size": size + 1, "sequence_length": length + 1, "start_token": size, "end_token": size}

    def save(self, workdir: Path) -> None:
        """Writes the tokenizer beside the run; an existing one must be the same."""
        path, content = Path(workdir) / TOKENIZER_FILE, self.make_tokenizer().to_json()
        if not path.is_file():
            write_whole(path, content)
        elif path.read_text(encoding="utf-8") != content:
            raise DataError(f"{path} is not the tokenizer of these molecules; use another --workdir")

    def beside(self, workdir: Path) -> Molecules:
        """The same data with the tokenizer of a run, where it has one."""
        path = Path(workdir) / TOKENIZER_FILE
        return dataclasses.replace(self, tokenizer_file=str(path)) if path.is_file() else self

    def going_on(self, workdir: Path) -> Molecules:
        """The same data with the tokenizer of a run; one that `tokenizer_file` names stays, for `save` to compare."""
        return self.beside(workdir) if self.tokenizer_file is None else self

    def starting_from(self, folder: str | Path) -> Molecules:
        """The same data with the tokenizer of a checkpoint.

        Raises:
          DataError: `tokenizer_file` is another one.
        """
        file = buckets.workdir(folder) / TOKENIZER_FILE
        if self.tokenizer_file is None or not file.is_file():
            return self.beside(file.parent)
        if self.make_tokenizer().pieces != read_tokenizer(file).pieces:
            raise DataError(
                f"{self.tokenizer_file} does not belong to the checkpoint {folder}; leave data.tokenizer_file out"
            )
        return self

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        tokens = batch["tokens"].astype(jnp.int32)
        # The end token counts once.
        mask = jnp.arange(tokens.shape[1])[None] <= batch["num_symbols"][:, None] + 1
        return {**batch, "tokens": tokens, "mask": mask}

    def decode(self, tokens: np.ndarray) -> str:
        """SMILES of ids [T + 1]."""
        tokenizer = self.make_tokenizer()
        ids = np.asarray(tokens).tolist()[1:]
        end = tokenizer.vocab_size
        return tokenizer.decode(ids[: ids.index(end)] if end in ids else ids)

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes one file with a SMILES a line."""
        path = with_ending(stem, ".smi")
        path.write_text("".join(self.decode(row) + "\n" for row in samples))
        return [path]

    def protocol(self) -> str:
        return f"SMILES by {self.tokenizer}, with one end token each"


@functools.lru_cache(maxsize=4)
def _tokenizer(data: Molecules) -> Tokenizer:
    if data.tokenizer_file is not None:
        return read_tokenizer(data.tokenizer_file)
    strings = [s for split in ("train", "validation", "test") for s in data.smiles(split)]
    return train_tokenizer(data.tokenizer, strings, 0)


@functools.lru_cache(maxsize=4)
def _longest(data: Molecules) -> int:
    tokenizer = data.make_tokenizer()
    strings = [s for split in ("train", "validation", "test") for s in data.smiles(split)]
    return max(len(s) if data.tokenizer == "characters" else len(tokenizer.encode(s)) for s in strings)


@functools.lru_cache(maxsize=4)
def read_smiles(path: str | None) -> list[str]:
    """Reads strings from a text or CSV file, plain or gzipped: one a line, what follows after a blank left out.

    Columns are divided by tabs, commas, semicolons or blanks.  The strings are the column whose name in a heading has
    the word smiles in it, and without a heading the first one.

    Raises:
      DataError: there is no such file, no molecule in it, or a line has something else where a SMILES should stand.
    """
    if not path:
        raise DataError("--data.name=file needs a file of SMILES: --data.dir=FILE")
    file = buckets.folder(path)
    if not file.is_file():
        raise DataError(f"there is no file {file}; MOSES is train.csv.gz and test.csv.gz at data.dir")
    content = file.read_bytes()
    try:
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8-sig")
        rows = list(_rows(text))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} is no readable file of SMILES ({error})") from None
    names = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    # If several columns match (canonical and isomeric SMILES, say), the column called smiles, else the first.
    named = [name for name in ("smiles", *names) if "smiles" in name and name in names]
    column = names.index(named[0]) if named else 0
    strings = []
    for number, cells in rows[bool(named) :]:
        words = cells[column].split() if column < len(cells) else []
        # The first line may be a heading or a name: C1 is no molecule.  Later lines may be wrong SMILES, as generated
        # strings are.
        if not words or not (_SYMBOLS.fullmatch if strings else is_smiles)(words[0]):
            found = repr(words[0][:40]) if words else "nothing"
            raise DataError(
                f"line {number} of {file} has {found} where a SMILES should stand; they stand "
                "first in a line, or in the column that the first line calls smiles"
            )
        strings.append(words[0])
    if not strings:
        raise DataError(f"{file} holds no molecules")
    return strings


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of each line that is not empty, divided at the separator that the first line uses."""
    first = text.lstrip().partition("\n")[0]
    delimiter = next((mark for mark in "\t,;" if mark in first), None)
    if delimiter is None and not first.startswith('"'):
        yield from ((i, line.split()) for i, line in enumerate(lines_of(text), 1) if line.strip())
        return
    # A cell in quotation marks may contain a line break, as in ZINC.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or ",", strict=True)
    yield from ((reader.line_num, cells) for cells in reader if "".join(cells).strip())


#: Atoms, bonds, branches and rings as OpenSMILES has them, with the arrows of reactions; groups of atoms stand in
#: brackets.
_SYMBOLS = re.compile(
    r"(?:\[[^\[\]\s]+\]|[BCNOPSFIbcnops*])"
    r"(?:[BCNOPSFIbcnops*().\-=#$:~/\\>0-9]+|\[[^\[\]\s]+\]|(?<=C)l|(?<=B)r|%\d\d|%\(\d+\))*"
)
_DIGIT = re.compile(r"\d")
_NO_RING = re.compile(r"\[[^\]]*\]|%\d\d|%\(\d+\)")


def is_smiles(string: str) -> bool:
    """Whether a string is written as a SMILES: known symbols, closed branches and rings; its chemistry is not looked
    at.
    """
    if not _SYMBOLS.fullmatch(string) or string.count("(") != string.count(")"):
        return False
    plain = _NO_RING.sub("", string) if "[" in string or "%" in string else string
    return not any(plain.count(digit) % 2 for digit in set(_DIGIT.findall(plain)))
