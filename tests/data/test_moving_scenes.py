"""Moving Scenes: videos, their captions, and how they are judged."""

import numpy as np
import pytest

from genjax.data import CaptionedVideos, DataError
from genjax.data.scenes import grammar, moving
from genjax.data.scenes.moving import DIRECTIONS, Motion, make_moving_scene, parse_motion, rates, render_videos


@pytest.fixture(scope="module")
def made():
    """Scenes and their videos [N, T, 32, 32, 3] in [0, 1]."""
    scenes = [make_moving_scene(split, 0, i) for split in moving.SPLITS for i in range(12)]
    return scenes, render_videos(scenes, 4) / np.float32(255)


def test_things_go_as_the_caption_says_and_stay_in_the_picture(made):
    scenes, videos = made
    for scene, video in zip(scenes, videos):
        assert parse_motion(scene.motion.caption()) == scene.motion
        border = np.concatenate([video[:, [0, -1]].reshape(-1, 3), video[:, :, [0, -1]].reshape(-1, 3)])
        # The soft tip of a triangle may touch the border.
        assert np.ptp(border) < 0.2
    assert {scene.motion.direction for scene in scenes} == set(DIRECTIONS)
    held_out = [(scene.motion.kind.colour, scene.motion.kind.shape) in grammar.HELD_OUT_PAIRS for scene in scenes]
    assert held_out == [False] * 36 + [True] * 12
    assert make_moving_scene("test", 0, 3) == make_moving_scene("test", 0, 3) != make_moving_scene("test", 1, 3)


def test_the_judge_reads_every_video_and_tells_thing_from_direction(made):
    scenes, videos = made
    motions = [scene.motion for scene in scenes]
    assert rates(videos, motions) == {"parsed": 1.0, "things": 1.0, "direction": 1.0, "all": 1.0}
    other = {"left": "right", "right": "up", "up": "down", "down": "left"}
    turned = [Motion(m.kind, other[m.direction]) for m in motions]
    assert rates(videos, turned) == {"parsed": 1.0, "things": 1.0, "direction": 0.0, "all": 0.0}
    assert rates(videos[:, ::-1], motions)["direction"] == 0.0
    # A thing that stands still goes nowhere; one that changes on the way is not the same thing.
    assert rates(videos[:, :1].repeat(4, 1), motions)["direction"] == 0.0
    changed = videos.copy()
    changed[:, -1] = np.roll(changed[:, -1], 1, axis=0)
    assert rates(changed, motions)["things"] < 0.1
    assert rates(np.zeros_like(videos), motions)["parsed"] == 0.0


def test_videos_are_pairs_and_become_a_gif(tmp_path):
    data = CaptionedVideos(num_made=8, num_held_out=4, num_frames=3, preprocessing="signed")
    spec = data.spec()
    assert spec["data_shape"] == (3, 32, 32, 3) and spec["sequence_length"] == 8
    x = data.load("train").gather(np.arange(4))["x"]
    assert data.decode(data.prompts(["a small red circle moves up"])["tokens"][0]) == "a small red circle moves up"
    [path] = data.write_samples(x / 127.5 - 1.0, tmp_path / "sheet")
    assert path.suffix == ".gif" and path.stat().st_size > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "scenes"}, "data.name=scenes is no set of pairs of videos and texts: moving_scenes"),
        ({"num_frames": 1}, "data.num_frames=1 must be at least 2"),
        ({"horizontal_flip": True}, "would show left for right, which captions tell apart"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(options, message):
    with pytest.raises(DataError, match=message):
        CaptionedVideos(**options)
    for text in ("a small red circle", "a small red circle moves away", "a red circle moves left"):
        with pytest.raises(DataError, match="is no caption of"):
            parse_motion(text)
