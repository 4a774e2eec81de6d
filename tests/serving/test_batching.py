"""Rows that are written together get what each gets alone, and what `generate` writes."""

import math
import re
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.errors import UserError
from genjax.families.language.gpt import GPT
from genjax.nn.transformer import Transformer
from genjax.serving.batching import Batcher, BusyError, Chosen, How, Limits, keys_of
from genjax.serving.rows import Assembler, Piece, Row, Score, Walk

VOCABULARY = [*(chr(code).encode() for code in range(97, 123)), "é".encode()[:1], "é".encode()[1:], b"", b"ab"]
END = 28
MODEL = GPT(
    # The memory grows to the window, and is a ring from then on.
    network=Transformer(num_layers=1, width=8, num_heads=2, max_length=64, window=24),
    vocab_size=len(VOCABULARY),
    sequence_length=16,
)


@pytest.fixture(scope="module")
def state():
    return MODEL.init(jax.random.key(0), {"tokens": jnp.zeros((1, 4), jnp.int32)})


@pytest.fixture(scope="module")
def batcher(state):
    batcher = Batcher(MODEL.token_decoder(state), MODEL.sampling, Limits(slots=4, max_waiting=8))
    yield batcher
    batcher.close()


class Listener:
    """Waits for the text of a row."""

    def __init__(self):
        self.text, self.scores, self.finish, self.over = "", [], None, threading.Event()

    def __call__(self, piece: Piece):
        self.text += piece.text
        self.scores.extend(piece.scores)
        if piece.finish is not None:
            self.finish = piece.finish
            self.over.set()


def row_of(seed, prompt=(1, 2, 3), max_new_tokens=8, stops=(), **settings):
    listener = Listener()
    row = Row(
        prompt=np.array(prompt, np.int32),
        max_new_tokens=max_new_tokens,
        key=keys_of(seed, 1)[0],
        assembler=Assembler(VOCABULARY, stops),
        emit=listener,
        **settings,
    )
    return row, listener


def write(batcher, rows):
    batcher.submit([row for row, _ in rows])
    for _, listener in rows:
        assert listener.over.wait(120)
    return [listener for _, listener in rows]


def as_text(tokens):
    return b"".join(VOCABULARY[token] for token in tokens).decode(errors="replace")


def test_rows_together_get_what_generate_writes_for_each_alone(batcher, state):
    wanted = {
        1: {"prompt": (1, 2, 3), "temperature": 1.0},
        2: {"prompt": (4,), "max_new_tokens": 5, "temperature": 0.7, "ends": (END,)},
        3: {"prompt": tuple(range(20)), "temperature": 0.0},
        4: {"prompt": (7, 8), "max_new_tokens": 11, "top_p": 0.5},
        5: {"prompt": (9, 9, 9), "max_new_tokens": 20},
    }
    # More rows than slots, of unlike lengths, so that rows come and go.
    together = write(batcher, [row_of(seed, **settings) for seed, settings in wanted.items()])
    for (seed, settings), listener in zip(wanted.items(), together):
        size = settings.get("max_new_tokens", 8)
        sampling = decoding.Sampling(temperature=settings.get("temperature", 1.0), top_p=settings.get("top_p"))
        out = MODEL.generate(
            state,
            jax.random.key(seed),
            jnp.array([settings["prompt"]]),
            size,
            sampling=sampling,
            end_token=settings.get("ends"),
        )
        tokens = [
            token for token in out.tokens[0, : int(out.lengths[0])].tolist() if token not in settings.get("ends", ())
        ]
        assert listener.text == as_text(tokens), seed
        assert listener.finish == ("stop" if int(out.lengths[0]) < size else "length"), seed
    assert batcher.num_active == 0 and batcher.num_waiting == 0


def largest_constant(program, *arguments):
    """Number of elements of the largest array that is written out in a program."""
    text = program.func.lower(*program.args, *arguments, **program.keywords).as_text()
    shapes = re.findall(r'constant dense<(?:\[|").*> : tensor<([0-9x]+)x', text)
    return max((math.prod(map(int, shape.split("x"))) for shape in shapes), default=0)


def test_weights_are_an_argument_of_each_program_and_no_constant_in_it(batcher, state):
    table = state.params["embedding"]["token"]["embedding"].size
    prompts, lengths = np.ones((2, 4), np.int32), np.full(2, 4, np.int32)
    pool = batcher._read(prompts, lengths, 16)
    ones = np.ones(2, np.float32)
    chosen = Chosen(np.stack([keys_of(0, 1)[0]] * 2), np.zeros(2, np.int32), ones, ones)
    how = np.array(How(num_steps=1, bound=False, drawn=True, nucleus=False, scored=False), np.int32)
    assert largest_constant(batcher._read, prompts, lengths, 16) < table
    assert largest_constant(batcher._advance, pool, chosen, how, np.zeros((2, 4), np.uint8)) < table
    # A decoder that does not tell its weights has them in its programs.
    untold = decoding.compiled(
        decoding.prefill, MODEL.token_decoder(state)._replace(with_weights=None), static_argnums=3
    )
    assert largest_constant(untold, prompts, lengths, 16) >= table


def num_programs(batcher):
    """Number of programs that were compiled for the batcher's model."""
    jitted = [batcher._read.func, batcher._advance.func, batcher._place, batcher._take, batcher._grow]
    return sum(each._cache_size() for each in jitted)


def test_no_program_is_compiled_after_the_warm_up(state):
    batcher = Batcher(MODEL.token_decoder(state), MODEL.sampling, Limits(slots=4, max_waiting=40, max_context=40))
    batcher.warm_up()
    deadline = time.monotonic() + 240
    while batcher.is_warming_up:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    compiled = num_programs(batcher)
    automaton = decoding.from_regular_expression("(ab|cd)+", VOCABULARY)
    settings = [
        {"temperature": 0.0}, {"top_p": 0.5}, {"num_likeliest": 3}, {"walk": Walk(automaton)}, {"ends": (END,)},
        {"max_new_tokens": 1}, {"prompt": tuple(range(20))}, {"prompt": (1,), "max_new_tokens": 30},
    ]  # fmt: skip
    for each in settings:
        write(batcher, [row_of(1, **each)])
    write(batcher, [row_of(seed, **each) for seed in range(4) for each in settings if "walk" not in each])
    assert compiled > 0 and num_programs(batcher) == compiled
    batcher.close()


def test_a_row_of_no_top_p_is_free_of_the_models_own(state):
    own = decoding.Sampling(top_p=0.01)
    batcher = Batcher(MODEL.token_decoder(state), own, Limits(slots=1))
    (free,) = write(batcher, [row_of(3, top_p=1.0)])
    wanted = MODEL.generate(state, jax.random.key(3), jnp.array([[1, 2, 3]]), 8, sampling=decoding.Sampling())
    assert free.text == as_text(wanted.tokens[0].tolist())
    batcher.close()


def test_programs_serve_other_weights_of_the_same_model(state):
    other = MODEL.init(jax.random.key(1), {"tokens": jnp.zeros((1, 4), jnp.int32)})
    greedy = decoding.Sampling(temperature=0.0)
    for each in (state, other):
        wanted = MODEL.generate(each, jax.random.key(0), jnp.array([[1, 2]]), 6, sampling=greedy).tokens[0].tolist()
        decoder = MODEL.token_decoder(each)
        assert list(decoding.stream(decoder, jax.random.key(0), np.array([1, 2]), 6, sampling=greedy)) == wanted


def test_log_probabilities_are_the_models_own(batcher, state):
    (listener,) = write(batcher, [row_of(11, num_likeliest=2, temperature=0.5)])
    tokens = [score.token for score in listener.scores]
    assert len(tokens) == 8 and as_text(tokens) == listener.text
    whole = jnp.array([[1, 2, 3, *tokens]])
    log_probs = np.asarray(jax.nn.log_softmax(MODEL.logits(state, whole[:, :-1]), axis=-1))[0, 2:]
    for place, score in enumerate(listener.scores):
        np.testing.assert_allclose(score.log_prob, log_probs[place, score.token], atol=1e-5)
        best = np.sort(log_probs[place])[::-1][:2]
        np.testing.assert_allclose([value for _, value in score.likeliest], best, atol=1e-5)


def test_a_pattern_holds_one_row_and_leaves_its_neighbours_alone(batcher):
    automaton = decoding.from_regular_expression("(ab|cd)+é?", VOCABULARY)
    free, alone = row_of(21), row_of(21)
    bound = [row_of(seed, walk=Walk(automaton), ends=ends) for seed, ends in ((22, (END,)), (23, ()))]
    listeners = write(batcher, [free, *bound])
    assert write(batcher, [alone])[0].text == listeners[0].text
    for listener in listeners[1:]:
        assert re.fullmatch("(ab|cd)+é?", listener.text) and listener.finish == "stop"


def test_a_walk_allows_what_the_automaton_allows():
    automaton = decoding.from_regular_expression("a(b|ab)*é", VOCABULARY)
    walk, rng = Walk(automaton), np.random.default_rng(0)
    for left in range(9, 0, -1):
        for ends in ((), (END,)):
            state = jnp.array([walk.state])
            want = np.asarray(automaton.allowed(state, ends or None, jnp.array([left])))[0]
            np.testing.assert_array_equal(walk.allowed(ends, left), want)
            assert walk.may_go_on(left) == bool(automaton.may_go_on(state, jnp.array([left]))[0])
        allowed = np.flatnonzero(walk.allowed((), left))
        if not allowed.size:
            break
        walk.advance(int(rng.choice(allowed)))
    assert walk.may_end


def test_a_row_that_nobody_waits_for_frees_its_place(batcher):
    rows = [row_of(seed, max_new_tokens=60) for seed in range(30, 36)]
    first = threading.Event()
    inner = rows[0][0].emit
    rows[0][0].emit = lambda piece: (first.set(), inner(piece))
    batcher.submit([row for row, _ in rows])
    assert first.wait(120)
    batcher.cancel([row for row, _ in rows[1:]])
    assert rows[0][1].over.wait(120) and not rows[5][1].over.is_set()
    assert write(batcher, [row_of(40)])[0].finish == "length"
    assert batcher.num_active == 0 and batcher.num_waiting == 0


def test_what_does_not_fit_is_refused_and_a_failure_ends_its_rows_alone(batcher, monkeypatch):
    with pytest.raises(UserError, match="the longest context is 64 tokens"):
        batcher.submit([row_of(0, max_new_tokens=62)[0]])
    with pytest.raises(UserError, match="the prompt is empty"):
        batcher.submit([row_of(0, prompt=())[0]])
    with pytest.raises(BusyError, match="ask again later"):
        batcher.submit([row_of(seed)[0] for seed in range(13)])
    with pytest.raises(ZeroDivisionError):
        batcher.call(lambda: 1 // 0).result(60)
    assert batcher.call(lambda: threading.current_thread().name).result(60) == "device"

    def broken():
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(batcher, "_step", broken)
        assert write(batcher, [row_of(1)])[0].finish == "error"
    assert write(batcher, [row_of(1)])[0].finish == "length"


def shown(pieces, stops):
    """Texts that an assembler shows, one for each token and one at the end."""
    assembler, texts, scores = Assembler(pieces, stops), [], []
    for token in range(len(pieces)):
        piece = assembler.take(token, Score(token, -1.0))
        texts.append(piece.text)
        scores.extend(score.token for score in piece.scores)
        if assembler.stopped:
            break
    end = assembler.finish()
    return [*texts, end.text], scores + [score.token for score in end.scores], assembler.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "texts", "tokens"),
    [
        ([b"a", b"b"], [], ["a", "b", ""], [0, 1]),
        ([b"\xc3", b"\xa9", b"\xff"], [], ["", "é", "�", ""], [0, 1, 2]),
        ([b"\xe2", b"\x82"], [], ["", "", "�"], [0, 1]),
        # A stop string over three tokens is never shown; what only looked like one is.
        ([b"x\n", b"\n", b"#", b"z"], ["\n\n#"], ["x", "", "", ""], [0]),
        ([b"x\n", b"\n", b"a"], ["\n\n#"], ["x", "", "\n\na", ""], [0, 1, 2]),
        ([b"x\n", b"\n"], ["\n\n#"], ["x", "", "\n\n"], [0, 1]),
        ([b"aab"], ["ab", "b"], ["a", ""], [0]),
        ([b"a", b"a", b"b"], ["ab"], ["", "a", "", ""], [0]),
        ([b"ab"], ["a"], ["", ""], []),
        ([b"\xc3", b"\xa9!"], ["é"], ["", "", ""], []),
    ],
)
def test_text_is_shown_as_soon_as_no_stop_string_can_begin_in_it(pieces, stops, texts, tokens):
    found, scored, _ = shown(pieces, stops)
    assert (found, scored) == (texts, tokens)
