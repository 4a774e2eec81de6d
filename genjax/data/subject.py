"""A few pictures of one thing that a pretrained model learns by name, and pictures of the thing's class beside them.

x        pictures of the thing,  "a photo of <x> dog"
prior_x  pictures of its class,  "a photo of a dog"      (DreamBooth: Ruiz et al. 2022, arXiv:2208.12242, section 3.2)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets
from genjax.batch import example_keys
from genjax.data import transforms
from genjax.data.base import DataError, Examples
from genjax.data.folders import folder_files, folder_images
from genjax.data.images import Images
from genjax.data.text.prompts import PromptTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectImages(Images):
    """Pictures `x` of one thing with `tokens` int32 [B, T] and `mask`; with prior_dir also `prior_x`, `prior_tokens`
    and `prior_mask`, of the thing's class.

    A handful of pictures has no part to hold out: every split is all pictures below data.dir.  An epoch passes once
    through the longer of the two folders, and over again through the other.

    Attributes:
      texts: what is said of the pictures: one at random in each training step, the first in evaluations.
      prior_dir: folder of pictures of the thing's class, or None.
      prior_text: what is said of these.
      new_words: words of `texts` that are no words of the tokenizer; their tokens follow the vocabulary's.
      like: a word, one token of the tokenizer, whose embedding new words start at; None leaves it to the model.
      tokenizer_dir: folder of the tokenizer of CLIP; None takes that of model.pretrained.
    """

    flag_name: ClassVar[str] = "subject"

    name: str = "folder"
    preprocessing: transforms.Preprocessing = "signed"
    class_names: tuple[str, ...] | None = ()
    texts: tuple[str, ...] = ("a photo of <x>",)
    prior_dir: str | None = None
    prior_text: str = "a photo"
    new_words: tuple[str, ...] = ()
    like: str | None = None
    tokenizer_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name != "folder":
            raise DataError(f"data.name={self.name}: pictures of a subject come from a folder, data.name=folder")
        if not self.texts:
            raise DataError('data.texts is empty; say what the pictures show, as --data.texts="a photo of <x>"')

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def load_split(self, split: str) -> Examples:
        for word in self.new_words:
            missing = next((text for text in self.texts if word not in text), None)
            if missing is not None:
                raise DataError(f"data.new_words has {word}, which the text {missing!r} does not say; put it into each")
        of_folder = lambda folder: self._prepared(
            folder_images(folder, None, self.image_size, self.channels or 3, (), self.skip_corrupt)[0], split
        )
        own = self.prompts(self.texts)
        arrays = {"tokens": own["tokens"], "mask": own["mask"]}
        if self.prior_dir is None:
            return _Subject(of_folder(self.dir), arrays)
        given = self.prompts([self.prior_text])
        prior_arrays = {f"prior_{name}": rows[0] for name, rows in given.items()}
        return _Subject(of_folder(self.dir), {**arrays, **prior_arrays}, of_folder(self.prior_dir))

    def prompts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts as a model sees them: `tokens` int32 [N, T] and `mask`; a warning names words that are cut off."""
        tokenizer = self._tokenizer()
        tokens = tokenizer.encode(texts)
        end = (tokens == tokenizer.end).argmax(1)
        return {"tokens": tokens, "mask": np.arange(tokens.shape[1])[None] <= end[:, None]}

    def references(self, split: str) -> list[tuple[str, ...]]:
        """What is said of each picture of a split."""
        return [self.texts] * len(self.load(split))

    def _tokenizer(self) -> PromptTokenizer:
        if self.tokenizer_dir is None:
            raise DataError(
                "pictures of a subject are for a pretrained model, whose tokenizer they take: give "
                "--model.pretrained=FOLDER, or --data.tokenizer_dir=FOLDER"
            )
        return _opened(str(buckets.workdir(self.tokenizer_dir)), self.new_words)

    def starting_from(self, folder: str | Path) -> SubjectImages:
        if self.tokenizer_dir is not None:
            return self
        return dataclasses.replace(self, tokenizer_dir=str(Path(folder) / "tokenizer"))

    def outline(self) -> None:
        """Nothing: the tokenizer tells the length of texts."""
        return None

    def spec(self) -> dict[str, Any]:
        """As `Images.spec`; `new_tokens`, the number of new words, with `first_new_token`, and with `like` the token
        `new_tokens_from`.
        """
        found = {**super().spec(), "new_tokens": len(self.new_words)}
        if self.new_words:
            found["first_new_token"] = self._tokenizer().num_known
        return found if self.like is None else {**found, "new_tokens_from": self._token_of(self.like)}

    def _token_of(self, word: str) -> int:
        given = self.prompts([word])
        own = given["tokens"][0][given["mask"][0]][1:-1]
        if len(own) != 1:
            raise DataError(f"data.like={word} is {len(own)} tokens, and one is needed; choose a commoner word")
        return int(own[0])

    def _training_files(self) -> dict[Path, list[Path]]:
        folders = [self.dir] if self.prior_dir is None else [self.dir, self.prior_dir]
        return dict(folder_files(folder, None) for folder in folders)

    # ------------------------------------------------------------------------------------------------------------------
    # On the device

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        text_key, key = jax.random.split(key)
        batch = super().augment(batch, key)
        keys = example_keys(text_key, batch)
        place = jax.vmap(lambda k: jax.random.randint(k, (), 0, len(self.texts)))(keys)[:, None, None]
        chosen = {name: jnp.take_along_axis(batch[name], place, axis=1) for name in ("tokens", "mask")}
        return {**batch, **chosen}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        prior = {} if "prior_x" not in batch else {"prior_x": super().transform({"x": batch["prior_x"]}, key)["x"]}
        batch = super().transform(batch, key)
        return {**batch, **prior, "tokens": batch["tokens"][:, 0], "mask": batch["mask"][:, 0]}


class _Subject:
    """Pictures of a thing with arrays that are the same for all, and perhaps pictures of its class beside them."""

    def __init__(self, pictures: Examples, same: dict[str, np.ndarray], prior: Examples | None = None) -> None:
        self._pictures, self._same, self._prior = pictures, same, prior

    def __len__(self) -> int:
        return max(len(self._pictures), 0 if self._prior is None else len(self._prior))

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {"x": self._pictures.gather(indices % len(self._pictures))["x"]}
        batch |= {name: np.broadcast_to(a[None], (len(indices), *a.shape)) for name, a in self._same.items()}
        if self._prior is not None:
            batch["prior_x"] = self._prior.gather(indices % len(self._prior))["x"]
        return batch

    def arrays(self) -> None:
        return None


@functools.lru_cache(maxsize=4)
def _opened(folder: str, new_words: tuple[str, ...]) -> PromptTokenizer:
    return PromptTokenizer(folder, new_tokens=new_words)
