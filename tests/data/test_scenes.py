"""Scenes: what its splits hold, what its captions mean, and how often its judge errs."""

import collections
import time

import numpy as np
import pytest

from genjax.data import DataError
from genjax.data.scenes import grammar, judge
from genjax.data.scenes.grammar import Description, Kind, Scene, Thing, parse, relation
from genjax.data.scenes.making import SPLITS, make_scene
from genjax.data.scenes.pictures import render
from genjax.data.scenes.questions import CHANCE, QUESTIONS, make_question
from genjax.errors import UserError


@pytest.fixture(scope="module")
def made():
    """Scenes of every split, and their pictures in [0, 1]."""
    scenes = {split: [make_scene(split, 0, i) for i in range(48)] for split in SPLITS}
    return scenes, {split: render(own).astype(np.float32) / 255 for split, own in scenes.items()}


def pairs_of(scenes):
    return {(t.kind.colour, t.kind.shape) for scene in scenes for t in scene.things}


def holds(scene):
    """Whether a scene has the relation that is held out, by the definition."""
    above, _, below = grammar.HELD_OUT_RELATION
    return any(
        a.kind.shape == above and b.kind.shape == below and b.y - a.y >= abs(a.x - b.x)
        for a in scene.things
        for b in scene.things
    )


def test_splits_hold_out_what_they_say(made):
    scenes = made[0]
    for split, own in scenes.items():
        held_out = [pairs_of([scene]) & set(grammar.HELD_OUT_PAIRS) for scene in own]
        assert all(held_out) if split == "held_out_pairs" else not any(held_out), split
        assert {holds(scene) for scene in own} == {split == "held_out_relation"}, split
        counts = {"held_out_relation": {2}, "three_things": {3}}.get(split, {1, 2})
        assert {len(scene.things) for scene in own} == counts
    assert len(pairs_of([make_scene("train", 0, i) for i in range(300)])) == 20
    assert make_scene("test", 0, 7) == make_scene("test", 0, 7) != make_scene("test", 1, 7)
    assert len({make_scene(split, 0, 7) for split in SPLITS}) == len(SPLITS)
    with pytest.raises(DataError, match="no split 'all'; it has train"):
        make_scene("all", 0, 0)


def test_captions_say_what_is_there_and_are_read_back(made):
    for scenes in made[0].values():
        for scene in scenes:
            description = scene.description
            assert description.is_true_of(scene.things) and description.is_true_of(scene.things[::-1])
            for paraphrase in (False, True):
                assert parse(description.caption(paraphrase)) == description
    kinds = (Kind("small", "red", "circle"), Kind("large", "blue", "square"))
    scene = Scene((Thing(kinds[0], 8.0, 10.0), Thing(kinds[1], 20.0, 14.0)), 0.1)
    assert scene.description.caption() == "a small red circle left of a large blue square"
    assert relation(*scene.things[::-1]) == "right of"
    assert Description(kinds[::-1], ("right of",)).is_true_of(scene.things)
    for wrong in (Description(kinds, ("right of",)), Description(kinds, ("above",)), Description(kinds[:1])):
        assert not wrong.is_true_of(scene.things)
    # Of two equal things either may be the first.
    twice = [Thing(kinds[0], 8.0, 10.0), Thing(kinds[0], 20.0, 14.0)]
    assert Description((kinds[0],) * 2, ("right of",)).is_true_of(twice)


@pytest.mark.parametrize(
    "text", ["", "a red circle", "a small pink circle", "a small red circle near", "a small red circle left of"]
)
def test_what_is_no_caption_is_one_sentence(text):
    with pytest.raises(DataError, match="is no caption of Scenes, such as 'a small red circle left of"):
        parse(text)


def test_things_lie_where_the_scene_says(made):
    scene = Scene((Thing(Kind("large", "white", "square"), 10.5, 20.5),), 0.2)
    picture = render([scene])[0]
    assert tuple(picture[20, 10]) == (242, 242, 242) and tuple(picture[0, 0]) == (51, 51, 51)
    rows, columns = np.nonzero(picture[..., 0] > 60)
    assert (rows.mean() + 0.5, columns.mean() + 0.5) == (20.5, 10.5)
    # The area by pixels is the area by the formula.
    for shape, area in zip(grammar.SHAPES, judge.AREAS):
        one = render([Scene((Thing(Kind("large", "white", shape), 16.5, 16.5),), 0.0)])[0, ..., 0] / 242
        np.testing.assert_allclose(one.sum(), area * 36, rtol=0.04)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_the_judge_reads_every_render(made, noise):
    rng = np.random.default_rng(0)
    for split, scenes in made[0].items():
        pictures = made[1][split]
        noisy = np.clip(pictures + noise * rng.standard_normal(pictures.shape), 0, 1)
        analysis = judge.analyse(noisy)
        found = judge.verdicts(analysis, [scene.description for scene in scenes])
        assert all(values.all() for values in found.values()), (split, {n: v.mean() for n, v in found.items()})
        for scene, things in zip(scenes, judge.things_of(analysis)):
            for thing in things:
                nearest = min(np.hypot(thing.x - t.x, thing.y - t.y) for t in scene.things if t.kind == thing.kind)
                assert nearest < 0.5


def one_word_changes(description):
    """Every description that differs by one word, as far as it means something else."""
    for i, kind in enumerate(description.kinds):
        for field, values in (("size", grammar.SIZES), ("colour", grammar.COLOURS), ("shape", grammar.SHAPES)):
            for value in values:
                if value != getattr(kind, field):
                    changed = list(description.kinds)
                    changed[i] = kind._replace(**{field: value})
                    yield Description(tuple(changed), description.relations)
    for i, name in enumerate(description.relations):
        for other in grammar.RELATIONS:
            # Of two equal things either direction is true.
            equal = description.kinds[i] == description.kinds[i + 1]
            if other != name and not (equal and other == grammar.REVERSE[name]):
                relations = list(description.relations)
                relations[i] = other
                yield Description(description.kinds, tuple(relations))


def test_the_judge_refuses_every_caption_that_differs_by_a_word(made):
    scenes, analysis = made[0]["test"], judge.analyse(made[1]["test"])
    read = list(judge.things_of(analysis))
    count = 0
    for scene, things in zip(scenes, read):
        for changed in one_word_changes(scene.description):
            assert not changed.is_true_of(things)
            count += 1
    assert count > 700
    captions = [scene.description for scene in scenes]
    wrong = [judge.verdicts(analysis, captions[k:] + captions[:k])["all"].mean() for k in range(1, 20)]
    assert np.mean(wrong) < 0.01


def test_what_is_no_scene_is_not_parsed(made):
    rng = np.random.default_rng(0)
    pictures = made[1]["three_things"]
    cut = pictures.copy()
    cut[:, :, 16:] = cut[:, :, :16]
    for wrong in (
        np.zeros((4, 32, 32, 3)),
        rng.random((4, 32, 32, 3)),
        np.full((4, 32, 32, 3), 0.8),
        made[1]["test"].mean(-1, keepdims=True).repeat(3, -1)[:8] * 0.5,
        np.clip(pictures[:8] + pictures[8:16], 0, 1)[:, ::2].repeat(2, 1),
    ):
        assert not judge.analyse(wrong).parsed.any()
    with pytest.raises(UserError, match=r"pictures of 32 x 32 x 3, not of \(16, 16, 3\)"):
        judge.analyse(np.zeros((1, 16, 16, 3)))


def test_rates_are_shares_of_all_and_of_captions_by_their_number_of_things(made):
    scenes = made[0]["test"][:8]
    analysis = judge.analyse(made[1]["test"][:8])
    captions = [scene.description for scene in scenes]
    # Number 0 names one thing of four, number 1 two.
    wrong = [Description((Kind("small", "white", "cross"), captions[0].kinds[0]), ("above",)), *captions[1:]]
    rates = judge.rates(analysis, wrong)
    assert rates == {"parsed": 1, "count": 7 / 8, "things": 7 / 8, "all": 7 / 8, "one_thing": 1.0, "relations": 4 / 5}
    assert np.isnan(judge.rates(analysis, [scenes[0].description] * 8)["relations"])


def test_the_judge_reads_five_hundred_pictures_a_second_of_one_core(made):
    pictures = np.concatenate(list(made[1].values()))
    judge.analyse(pictures[:64])
    began = time.process_time()
    judge.analyse(pictures)
    # Tests compile without optimisation; with it the judge reads three times as many.
    assert len(pictures) / (time.process_time() - began) > 500


def test_questions_cannot_be_answered_without_the_picture():
    asked = {split: [make_question(split, 0, i) for i in range(3000)] for split in ("train", "test")}
    by_text, by_kind = (collections.defaultdict(collections.Counter) for _ in range(2))
    for question in asked["train"]:
        by_text[question.text][question.answer] += 1
        by_kind[question.kind][question.answer] += 1
    right = collections.defaultdict(list)
    for question in asked["test"]:
        counts = by_text.get(question.text, by_kind[question.kind])
        right[question.kind].append(max(counts, key=lambda a: (counts[a], a)) == question.answer)
    assert set(right) == set(QUESTIONS)
    for kind, values in right.items():
        assert np.mean(values) < CHANCE[kind] + 0.06, (kind, np.mean(values))


def test_answers_are_right():
    names = {"one": 1, "two": 2, "three": 3}
    for i in range(120):
        scene, kind, text, answer = make_question("validation", 0, i)
        things, words = scene.things, text.rstrip("?").split()
        match kind:
            case "colour":
                assert [t.kind.colour for t in things if t.kind.shape == words[-1]] == [answer]
            case "shape":
                assert [t.kind.shape for t in things if t.kind.colour == words[-2]] == [answer]
            case "size":
                assert [t.kind.size for t in things if list(t.kind[1:]) == words[-2:]] == [answer]
            case "count":
                assert len(things) == names[answer]
            case "exists":
                assert any(list(t.kind[1:]) == words[-2:] for t in things) == (answer == "yes")
            case "relation":
                first = next(t for t in things if list(t.kind[1:]) == words[2:4])
                other = next(t for t in things if list(t.kind[1:]) == words[-2:])
                assert (relation(first, other) == " ".join(words[4:-3])) == (answer == "yes")
        assert not pairs_of([scene]) & set(grammar.HELD_OUT_PAIRS) and not holds(scene)
    with pytest.raises(DataError, match="no split 'all'"):
        make_question("all", 0, 0)
