"""Files of pictures that the tools write."""

import numpy as np
import pytest
from PIL import Image

from experiments.pictures import write_animation


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_has_its_frames_and_the_pictures_beside_each_other(channels, tmp_path):
    pictures = np.zeros((3, 2, 8, 8, channels), np.float32)
    for i in range(3):
        pictures[i, 1, :, 2 * i : 2 * i + 2] = 1.0
    path = tmp_path / "walk.gif"
    write_animation(pictures, path)
    with Image.open(path) as image:
        assert image.n_frames == 3 and image.size == (512, 256)
        for i in range(3):
            image.seek(i)
            row = np.asarray(image.convert("L"))[0]
            assert (row[256 + 64 * i : 256 + 64 * i + 64] > 200).all() and (row[:256] < 50).all()
