"""Decoding against enumeration, on a second-order Markov chain whose probabilities are all known."""

import gc
import importlib
import itertools
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from genjax import decoding
from genjax.batch import DEVICE_AXIS
from genjax.decoding import Decoder, Sampling, Step, Watermark
from genjax.decoding.generate import row_keys
from genjax.families.language.gpt import GPT
from genjax.nn.transformer import Transformer

V = 5


def chain(seed, scale=1.5):
    """A decoder whose next token depends on the last two; hidden features are rows of a table."""
    table = scale * jax.random.normal(jax.random.key(seed), (V, V, V))
    features = jax.random.normal(jax.random.key(seed + 1), (V, V, 3))

    def init(batch, length, ragged, back=1):
        return {"tokens": jnp.zeros((batch, length + 1), jnp.int32), "length": jnp.zeros((batch,), jnp.int32)}

    def extend(memory, tokens):
        places = memory["length"][:, None] + jnp.arange(tokens.shape[1])[None]
        text = jax.vmap(lambda row, i, t: row.at[i + 1].set(t, mode="drop"))(memory["tokens"], places, tokens)
        before = jnp.take_along_axis(text, places, axis=1)  # column 0 is 0 and stands for the start
        return Step(
            table[before, tokens],
            {"tokens": text, "length": memory["length"] + tokens.shape[1]},
            features[before, tokens],
        )

    return Decoder(init, extend, lambda memory, length: {**memory, "length": length}), np.asarray(table)


TARGET, TABLE = chain(0)
DRAFT, _ = chain(10)
PROMPT = jnp.array([[1, 2]])


def filtered(sampling, logits, seen=()):
    """Probabilities [V] after the filters, by their definitions: sets of tokens that sorting finds."""
    logits = np.array(logits, np.float64)
    for token in set(seen):
        logits[token] *= sampling.repetition_penalty ** (1 if logits[token] < 0 else -1)
    p = np.exp((logits - logits.max()) / max(sampling.temperature, 1e-4))

    def kept(order, mass):
        """The fewest of the first ones that have this mass."""
        return order[: 1 + np.sum(np.cumsum(p[order]) / p.sum() < mass)]

    sets = [(sampling.top_k, lambda k: np.argsort(-p)[:k])]
    sets.append((sampling.top_p, lambda mass: kept(np.argsort(-p), mass)))
    sets.append((sampling.min_p, lambda least: np.flatnonzero(p >= least * p.max())))

    def typical(mass):
        surprise = -np.log(np.maximum(p / p.sum(), 1e-300))
        return kept(np.argsort(np.abs(surprise - (p / p.sum() * surprise).sum())), mass)

    for setting, chosen in (*sets, (sampling.typical_p, typical)):
        if setting is not None:
            p = np.where(np.isin(np.arange(len(p)), chosen(setting)), p, 0.0)
    return p / p.sum()


def probabilities(sampling, size, prompt=(1, 2), end=None, table=TABLE):
    """Probability of every continuation of `size` tokens; what follows one of the ends is the first of them."""
    result, end = {}, () if end is None else np.ravel(end)
    for text in itertools.product(range(V), repeat=size):
        total, past, over = 1.0, list(prompt), False
        for token in text:
            if over:
                total *= token == end[0]
                continue
            total *= filtered(sampling, table[past[-2], past[-1]])[token]
            past.append(token)
            over = token in end
        result[text] = total
    return result


def chi_square(tokens, expected):
    """p-value of the hypothesis that rows of tokens have these probabilities."""
    counts = dict.fromkeys(expected, 0)
    for row in np.asarray(tokens):
        counts[tuple(int(t) for t in row)] += 1
    observed, wanted = np.array(list(counts.values())), len(tokens) * np.array(list(expected.values()))
    assert observed[wanted == 0].sum() == 0
    rare = wanted < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    wanted = np.append(wanted[~rare], wanted[rare].sum())
    keep = wanted > 1e-9
    return stats.chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue


FILTERS = [
    Sampling(),
    Sampling(temperature=0.7, top_k=3),
    Sampling(top_p=0.8),
    Sampling(min_p=0.2),
    Sampling(typical_p=0.7),
    Sampling(temperature=1.3, top_k=4, top_p=0.9, min_p=0.05),
    Sampling(typical_p=0.6, top_k=5, temperature=2.0),
    Sampling(repetition_penalty=1.7),
    Sampling(repetition_penalty=0.6, top_p=0.5),
]


@pytest.mark.parametrize("sampling", [*FILTERS, Sampling(temperature=0.0, repetition_penalty=2.0)])
def test_filters_keep_what_their_definitions_say(sampling):
    logits = np.asarray(2.0 * jax.random.normal(jax.random.key(5), (20, 12)), np.float32)
    seen = np.random.default_rng(0).random((20, 12)) < 0.3
    ours = jax.nn.softmax(sampling.filter(jnp.asarray(logits), jnp.asarray(seen)))
    theirs = [filtered(sampling, row, np.flatnonzero(mask)) for row, mask in zip(logits, seen)]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("sampling", FILTERS)
def test_filters_equal_those_of_transformers(sampling):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    logits = np.asarray(2.0 * jax.random.normal(jax.random.key(5), (6, 12)), np.float32)
    seen = np.random.default_rng(0).integers(0, 12, (6, 4))
    theirs = [transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    theirs.append(transformers.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        theirs.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p:
        theirs.append(transformers.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        theirs.append(transformers.MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p:
        theirs.append(transformers.TypicalLogitsWarper(sampling.typical_p))
    scores = torch.tensor(logits)
    for processor in theirs:
        scores = processor(torch.tensor(seen), scores)
    mask = np.zeros(logits.shape, bool)
    np.put_along_axis(mask, seen, True, axis=1)
    ours = jax.nn.softmax(sampling.filter(jnp.asarray(logits), jnp.asarray(mask)))
    np.testing.assert_allclose(ours, torch.softmax(scores, -1).numpy(), atol=1e-6)


def test_the_largest_are_the_same_by_pairs_and_by_sorting(monkeypatch):
    logits = jnp.round(3 * jax.random.normal(jax.random.key(0), (50, 9)))  # with ties
    by_pairs = Sampling(top_k=4).filter(logits)
    monkeypatch.setattr("genjax.decoding.sampling.COMPARED", 0)
    np.testing.assert_array_equal(by_pairs, Sampling(top_k=4).filter(logits))


def test_settings_out_of_range_are_refused():
    for bad in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 1.5}, {"min_p": 0.0}, {"repetition_penalty": 0.0}):
        with pytest.raises(ValueError, match="sampling."):
            Sampling(**bad)


@pytest.mark.parametrize("sampling, end", [(Sampling(), 4), (Sampling(temperature=0.8, top_p=0.9), (4, 2))])
def test_samples_have_the_exact_distribution(sampling, end):
    prompts = jnp.tile(PROMPT, (20_000, 1))
    run = lambda key: decoding.generate(TARGET, key, prompts, 3, sampling=sampling, end_token=end)
    out = jax.jit(run)(jax.random.key(0))
    expected = probabilities(sampling, 3, end=end)
    assert chi_square(out.tokens, expected) > 1e-3
    logs = np.log([expected[tuple(int(t) for t in row)] for row in np.asarray(out.tokens[:50])])
    np.testing.assert_allclose(out.log_probs[:50].sum(1), logs, atol=1e-4)
    ends = np.isin(np.asarray(out.tokens[:50]), end)
    np.testing.assert_array_equal(out.lengths[:50], np.where(ends.any(1), ends.argmax(1) + 1, 3))


def test_prompts_of_different_lengths_continue_as_if_alone():
    greedy = Sampling(temperature=0.0)
    prompts = jnp.array([[1, 2, 3, 0], [2, 0, 0, 0], [3, 1, 4, 1]])
    lengths = jnp.array([3, 1, 4])
    for decoder in (TARGET, TARGET._replace(rewind=None)):
        together = decoding.generate(decoder, jax.random.key(0), prompts, 4, lengths=lengths, sampling=greedy)
        for row, length in enumerate([3, 1, 4]):
            alone = decoding.generate(TARGET, jax.random.key(0), prompts[row : row + 1, :length], 4, sampling=greedy)
            np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])


def test_a_memory_that_grows_in_stages_changes_nothing(monkeypatch):
    sizes = []

    def grow(memory, length):
        sizes.append(length)
        more = length + 1 - memory["tokens"].shape[1]
        return {**memory, "tokens": jnp.pad(memory["tokens"], [(0, 0), (0, more)])}

    prompts, lengths = jnp.array([[1, 2, 3], [2, 0, 0]]), jnp.array([3, 1])
    for name, value in (("LARGE_MEMORY", 0), ("NUM_STAGES", 3), ("FEWEST_TOKENS", 2)):
        monkeypatch.setattr(importlib.import_module("genjax.decoding.generate"), name, value)
    run = lambda decoder: decoding.generate(decoder, jax.random.key(2), prompts, 9, lengths=lengths)
    jax.tree.map(np.testing.assert_array_equal, run(TARGET._replace(grow=grow)), run(TARGET))
    assert sizes == [9, 11]


def test_rows_in_parts_are_continued_as_together(monkeypatch):
    module = importlib.import_module("genjax.decoding.generate")
    prompts, lengths = jnp.arange(24).reshape(8, 3) % V, jnp.array([3, 1, 2, 3, 3, 2, 1, 1])
    run = lambda lengths: decoding.generate(TARGET, jax.random.key(2), prompts, 5, lengths=lengths, end_token=4)
    together = jax.jit(run)(lengths)
    monkeypatch.setattr(module, "_num_parts", lambda *sizes: 3)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(lambda lengths: run(lengths))(lengths), together)
    with pytest.raises(ValueError, match="must have between 1 and 3 tokens"):
        run(lengths.at[7].set(4))


def test_each_device_takes_its_own_rows_in_parts(monkeypatch):
    module = importlib.import_module("genjax.decoding.generate")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    prompts = jnp.arange(48).reshape(16, 3) % V
    run = lambda prompts: decoding.generate(TARGET, jax.random.key(2), prompts, 5)
    together = jax.jit(run)(prompts)
    monkeypatch.setattr(module, "_num_parts", lambda *sizes: 2)
    program = jax.jit(lambda prompts: run(prompts)).lower(jax.device_put(prompts, rows)).compile()
    jax.tree.map(np.testing.assert_array_equal, program(jax.device_put(prompts, rows)), together)
    assert not any(name in program.as_text() for name in ("all-gather", "all-to-all", "collective-permute"))


def test_devices_of_pmap_draw_what_one_device_draws():
    prompts = jnp.tile(PROMPT, (4, 1))
    run = lambda prompts: decoding.generate(TARGET, jax.random.key(7), prompts, 3).tokens
    whole = jax.jit(run)(prompts)
    parts = jax.pmap(run, axis_name=DEVICE_AXIS, devices=jax.devices()[:2])(prompts.reshape(2, 2, 2))
    np.testing.assert_array_equal(parts.reshape(4, 3), whole)
    assert len(np.unique(whole, axis=0)) > 2
    # As do microbatches, whose rows know their places.
    keys, index = row_keys(jax.random.key(7), prompts), jnp.array([3, 1])
    assert (row_keys(jax.random.key(7), prompts[:2], index) == keys[index]).all()


def test_rows_are_divided_where_a_part_and_the_parameters_fit_a_cache():
    module = importlib.import_module("genjax.decoding.generate")
    size = module.PROCESSOR_CACHE * jax.device_count()
    prompts = jnp.zeros((64 * jax.device_count(), 3), jnp.int32)

    def parts(memory, weights, prompts=prompts, new=64):
        init = lambda batch, length, ragged: jax.ShapeDtypeStruct((memory * batch // len(prompts),), jnp.int8)
        return module._num_parts(Decoder(init, None, weight_bytes=weights), prompts, new, False)

    assert parts(size, 0) == 1 and parts(size + 2**10, 0) == 2 and parts(4 * size, 0) == 4
    assert parts(size, module.PROCESSOR_CACHE // 2) == 2
    # Parts of fewer rows would not fit, parameters alone do not, or nothing is known of them.
    assert parts(5 * size, 0) == parts(size, module.PROCESSOR_CACHE) == parts(4 * size, None) == 1
    assert parts(4 * size, 0, new=8) == 1


def test_a_stream_yields_what_the_loop_generates():
    for sampling, end in ((Sampling(), 4), (Sampling(repetition_penalty=2.0), (4, 1))):
        whole = decoding.generate(TARGET, jax.random.key(7), PROMPT, 6, sampling=sampling, end_token=end)
        stream = decoding.stream(TARGET, jax.random.key(7), PROMPT[0], 6, sampling=sampling, end_token=end)
        assert list(stream) == whole.tokens[0, : int(whole.lengths[0])].tolist()


def test_a_stream_leaves_nothing_of_its_decoder_behind():
    decoder, _ = chain(0)
    holds_weights = weakref.ref(decoder.extend)
    list(decoding.stream(decoder, jax.random.key(0), PROMPT[0], 2))
    del decoder
    gc.collect()
    assert holds_weights() is None


@pytest.mark.parametrize("alpha, end", [(0.0, 4), (0.8, (4, 1))])
def test_wide_beams_find_what_exhaustive_search_finds(alpha, end):
    size = 4
    hypotheses = {}
    for text, p in probabilities(Sampling(), size, end=end).items():
        length = next((i + 1 for i, token in enumerate(text) if token in np.ravel(end)), size)
        if p > 0:
            hypotheses[text] = (np.log(p) / float(decoding.length_penalty(length, alpha)), length)
    best = sorted(hypotheses, key=lambda text: -hypotheses[text][0])
    search = jax.jit(lambda: decoding.beam_search(TARGET, PROMPT, size, num_beams=128, end_token=end, alpha=alpha))
    beams = search()
    for i in range(10):
        assert tuple(beams.tokens[0, i].tolist()) == best[i]
        np.testing.assert_allclose(beams.scores[0, i], hypotheses[best[i]][0], rtol=1e-5)
        assert beams.lengths[0, i] == hypotheses[best[i]][1]


def test_one_beam_is_greedy_and_rows_do_not_mix():
    prompts = jnp.array([[1, 2], [3, 0]])
    greedy = decoding.generate(TARGET, jax.random.key(0), prompts, 5, sampling=Sampling(temperature=0.0), end_token=9)
    beams = decoding.beam_search(TARGET, prompts, 5, num_beams=1, end_token=9)
    np.testing.assert_array_equal(beams.tokens[:, 0], greedy.tokens)
    together = decoding.beam_search(TARGET, prompts, 4, num_beams=3, end_token=4, alpha=0.6)
    alone = decoding.beam_search(TARGET, prompts[1:], 4, num_beams=3, end_token=4, alpha=0.6)
    np.testing.assert_array_equal(together.tokens[1], alone.tokens[0])


@pytest.mark.parametrize("sampling, end", [(Sampling(), (4, 0)), (Sampling(temperature=0.8, top_k=3), 4)])
def test_speculation_has_exactly_the_distribution_of_the_target(sampling, end):
    prompts = jnp.tile(PROMPT, (20_000, 1))
    run = jax.jit(
        lambda k: decoding.speculative(TARGET, DRAFT, k, prompts, 4, num_proposals=2, sampling=sampling, end_token=end)
    )
    out, passes = run(jax.random.key(1))
    assert chi_square(out.tokens, probabilities(sampling, 4, end=end)) > 1e-3
    assert passes <= 4


def test_a_draft_equal_to_the_target_is_always_kept():
    out, passes = decoding.speculative(TARGET, TARGET, jax.random.key(1), PROMPT, 12, num_proposals=3)
    assert passes == 3 and out.tokens.shape == (1, 12)
    greedy = Sampling(temperature=0.0)
    out, _ = decoding.speculative(
        TARGET,
        DRAFT,
        jax.random.key(1),
        jnp.array([[1, 2, 0], [3, 1, 2]]),
        6,
        lengths=jnp.array([2, 3]),
        sampling=greedy,
    )
    for row, prompt in enumerate(([1, 2], [3, 1, 2])):
        alone = decoding.generate(TARGET, jax.random.key(0), jnp.array([prompt]), 6, sampling=greedy)
        np.testing.assert_array_equal(out.tokens[row], alone.tokens[0])
    with pytest.raises(ValueError, match="go back"):
        decoding.speculative(TARGET._replace(rewind=None), DRAFT, jax.random.key(1), PROMPT, 4)


LETTERS = ["a", "b", "ab", "c", ""]


def test_constrained_samples_match_and_have_the_renormalised_distribution():
    automaton = decoding.from_regular_expression("(a|b)ab?c", LETTERS)
    prompts = jnp.tile(PROMPT, (500, 1))
    out = jax.jit(lambda k: decoding.generate(TARGET, k, prompts, 6, end_token=4, constraint=automaton))(
        jax.random.key(0)
    )
    for row, length in zip(np.asarray(out.tokens), np.asarray(out.lengths)):
        text = "".join(LETTERS[t] for t in row[:length])
        assert row[length - 1] == 4 and re.fullmatch("(a|b)ab?c", text), text
    first = np.bincount(np.asarray(out.tokens[:, 0]), minlength=V)
    allowed = np.asarray(automaton.allowed(jnp.array([0]), 4)[0])
    p = np.where(allowed, np.exp(TABLE[1, 2].astype(np.float64)), 0)
    assert stats.chisquare(first[p > 0], 500 * (p / p.sum())[p > 0]).pvalue > 1e-3


def test_contrastive_search_is_greedy_without_the_penalty_and_follows_its_equation():
    greedy = decoding.generate(TARGET, jax.random.key(0), PROMPT, 6, sampling=Sampling(temperature=0.0))
    plain = decoding.contrastive_search(TARGET, PROMPT, 6, alpha=0.0, top_k=3)
    np.testing.assert_array_equal(plain.tokens, greedy.tokens)
    features = np.asarray(jax.random.normal(jax.random.key(1), (V, V, 3)))
    unit = lambda h: h / np.linalg.norm(h)
    text, history = [1, 2], [unit(features[0, 1]), unit(features[1, 2])]
    for _ in range(6):
        p = np.asarray(jax.nn.softmax(TABLE[text[-2], text[-1]]))
        scores = {
            v: 0.4 * p[v] - 0.6 * max(unit(features[text[-1], v]) @ h for h in history) for v in np.argsort(-p)[:3]
        }
        token = int(max(scores, key=scores.get))
        history.append(unit(features[text[-1], token]))
        text.append(token)
    out = decoding.contrastive_search(TARGET, PROMPT, 6, alpha=0.6, top_k=3)
    assert out.tokens[0].tolist() == text[2:]
    every = [decoding.contrastive_search(TARGET, PROMPT, 6, alpha=0.6, top_k=k).tokens for k in (V, V + 5)]
    np.testing.assert_array_equal(*every)


def test_the_watermark_is_found_where_it_is_and_not_elsewhere():
    mark = Watermark(seed=3, delta=4.0)
    vocab = 64
    flat = Decoder(
        lambda batch, length, ragged: jnp.zeros((batch,)),
        lambda memory, tokens: Step(jnp.zeros((*tokens.shape, vocab)), memory),
    )
    prompts = jnp.zeros((40, 1), jnp.int32)
    run = jax.jit(lambda k, w: decoding.generate(flat, k, prompts, 80, watermark=w).tokens, static_argnums=1)
    marked, plain = run(jax.random.key(0), mark), run(jax.random.key(0), None)
    z = lambda tokens: np.asarray(mark.z_score(tokens, vocab))
    assert z(marked).min() > 6
    assert abs(z(plain).mean()) < 0.6 and 0.6 < z(plain).std() < 1.5
    # A single text has fewer pairs than the vocabulary has tokens, and many texts have more: two ways to one score.
    few = mark.z_score(marked[:1, :vocab], vocab)
    np.testing.assert_allclose(mark.z_score(marked[:, :vocab], vocab)[:1], few, rtol=1e-6)
    assert np.abs(np.asarray(Watermark(seed=4).z_score(marked, vocab)).mean()) < 1.0
    assert int(mark.green(jnp.arange(3), vocab).sum()) == 3 * 16
    for bad in ({"green_fraction": 0.0}, {"green_fraction": 1.0}, {"green_fraction": 1.5}, {"delta": np.inf}):
        with pytest.raises(ValueError, match="the watermark's"):
            Watermark(**bad)
    # Padding in front decides no split that anybody put in.
    padded = jnp.concatenate([jnp.full((40, 5), 9), marked], axis=1)
    found = mark.z_score(padded, vocab, jnp.arange(padded.shape[1])[None] >= jnp.full((40, 1), 5))
    np.testing.assert_allclose(found, z(marked), rtol=1e-6)
    with pytest.raises(ValueError, match="green_fraction=0.01 of 20 tokens is 0 of them"):
        Watermark(green_fraction=0.01).z_score(jnp.zeros((1, 4), jnp.int32), 20)


def test_what_cannot_be_generated_is_said():
    with pytest.raises(ValueError, match="max_new_tokens"):
        decoding.generate(TARGET, jax.random.key(0), PROMPT, 0)
    with pytest.raises(ValueError, match="at least one token"):
        decoding.generate(TARGET, jax.random.key(0), PROMPT[:, :0], 3)
    with pytest.raises(ValueError, match="num_beams=0"):
        decoding.beam_search(TARGET, PROMPT, 3, num_beams=0, end_token=4)
    with pytest.raises(ValueError, match="top_k=0"):
        decoding.contrastive_search(TARGET, PROMPT, 3, top_k=0)
    for length in (0, 3):
        with pytest.raises(ValueError, match=f"with the length {length} must have between 1 and 2 tokens"):
            decoding.generate(TARGET, jax.random.key(0), PROMPT, 3, lengths=jnp.array([length]))
    with pytest.raises(ValueError, match=r"the shape \(1,\), and not \(2,\)"):
        decoding.generate(TARGET, jax.random.key(0), PROMPT, 3, lengths=jnp.array([1, 2]))
    more = TARGET._replace(extend=lambda memory, tokens: Step(jnp.zeros((*tokens.shape, V + 1)), memory))
    with pytest.raises(ValueError, match="the draft has 6 tokens and the target 5"):
        decoding.speculative(TARGET, more, jax.random.key(0), PROMPT, 3)


def test_a_row_ends_with_the_token_that_completes_a_stop_string():
    prompts = jnp.tile(PROMPT, (40, 1))
    stop = decoding.stop_strings(["cd", "aa"], ["a", "b", "c", "d", ""])
    free = decoding.generate(TARGET, jax.random.key(0), prompts, 8)
    out = decoding.generate(TARGET, jax.random.key(0), prompts, 8, stop=stop)
    for row, ended, length in zip(np.asarray(free.tokens), np.asarray(out.tokens), np.asarray(out.lengths)):
        text = "".join("abcd"[token] if token < 4 else "" for token in row)
        lengths = [
            i
            for i in range(1, 9)
            if any(s in "".join("abcd"[t] if t < 4 else "" for t in row[:i]) for s in ("cd", "aa"))
        ]
        assert length == min([*lengths, 8]), text
        np.testing.assert_array_equal(ended[:length], row[:length])
    assert 0 < (np.asarray(out.lengths) < 8).sum() < 40
    streamed = list(decoding.stream(TARGET, jax.random.key(0), PROMPT[0], 8, stop=stop))
    assert streamed == np.asarray(out.tokens[0, : out.lengths[0]]).tolist()


def test_memory_of_the_detector_grows_with_the_vocabulary_and_not_with_the_text():
    def temporaries(length: int) -> int:
        texts = jax.ShapeDtypeStruct((1, length), jnp.int32)
        scored = jax.jit(lambda tokens: Watermark().z_score(tokens, 20_000))
        return scored.lower(texts).compile().memory_analysis().temp_size_in_bytes

    # Of [T, V] the second would have four times the first.
    assert temporaries(1024) < 1.5 * temporaries(256)


def test_generate_outside_of_jit_is_compiled_once_for_all_calls_of_a_shape():
    network = Transformer(num_layers=1, width=8, num_heads=2, max_length=24)
    model = GPT(network=network, vocab_size=11, sequence_length=8)
    states = [model.init(jax.random.key(seed), {"tokens": jnp.zeros((1, 4), jnp.int32)}) for seed in range(2)]
    prompts = [np.full((2, 3), token, np.int32) for token in range(3)]
    inside = jax.jit(lambda state, key, prompts: model.generate(state, key, prompts, 6, end_token=1))
    compiled = []
    count = lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    for call, (state, prompt) in enumerate([(states[0], prompts[0]), (states[1], prompts[1]), (states[0], prompts[2])]):
        key = jax.random.key(call)
        jax.monitoring.register_event_duration_secs_listener(count)
        found = model.generate(state, key, prompt, 6, end_token=1)
        jax.monitoring.unregister_event_duration_listener(count)
        # The first call compiles; the others have other weights, keys and prompts.
        assert bool(compiled) == (call == 0), compiled
        compiled.clear()
        for got, want in zip(found, inside(state, key, prompt)):
            np.testing.assert_allclose(got, want, rtol=1e-5)
