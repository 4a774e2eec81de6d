"""Regular expressions and constrained decoding, against Python's `re` on every short text."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.decoding import Decoder, Step
from genjax.decoding.regular_expression import compile_pattern
from genjax.errors import UserError

LETTERS = ["a", "b", "ab", "c", ""]


@pytest.mark.parametrize(
    "pattern",
    [
        "a*b",
        "(a|b)+c?",
        "[ab]{2,3}",
        "a.c",
        "[^c]*",
        "(ab){2}",
        "a{2,}b|c",
        r"\w",
        "(?:a|bc)*",
        "",
        "a?b?c?",
        "a{0,1}c",
        r"[a-b\d]+",
        r"\W|[^\Wb]",
        "(a?b?){0,2}c",
        "(a|ab){1,3}",
        "(b?c){0,3}a{0,2}",
    ],
)
def test_automata_accept_what_the_pattern_matches(pattern):
    automaton = decoding.from_regular_expression(pattern, LETTERS)
    for size in range(5):
        for tokens in itertools.product(range(4), repeat=size):
            text = "".join(LETTERS[t] for t in tokens)
            assert automaton.matches(tokens) == bool(re.fullmatch(pattern, text)), (pattern, text)


@pytest.mark.parametrize("pattern", [".", ".*", "é+", "[^a]€?", "[à-ÿ]*a", "a|\u20ac", "[\u0100-\U00010000]"])
def test_parts_of_characters_are_tokens_too(pattern):
    pieces = [b"a", b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", "é".encode()]
    automaton = decoding.from_regular_expression(pattern, pieces)
    for size in range(5):
        for tokens in itertools.product(range(len(pieces)), repeat=size):
            text = b"".join(pieces[token] for token in tokens)
            try:
                matches = bool(re.fullmatch(pattern, text.decode()))
            except UnicodeDecodeError:
                matches = False
            assert automaton.matches(tokens) == matches, (pattern, text)


def test_a_dot_is_every_character_of_valid_utf8_and_nothing_else():
    table, accepting = compile_pattern(".|\n")

    def accepts(text):
        state = 0
        for byte in text:
            state = table[state, byte]
            if state < 0:
                return False
        return bool(accepting[state])

    points = {*range(0, 0x110000, 61), *(edge + i for edge in (0x80, 0x800, 0x10000, 0x110000) for i in (-1, 0))}
    assert all(accepts(chr(i).encode()) for i in points if i < 0xD800 or 0xDFFF < i < 0x110000)
    valid = 0
    # Many of these are near misses: too long, surrogates, or cut short.
    for text in itertools.product((0x41, 0x80, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xE0, 0xED, 0xF0, 0xF4, 0xF5), repeat=4):
        for size in range(1, 5):
            try:
                one = len(bytes(text[:size]).decode()) == 1
            except UnicodeDecodeError:
                one = False
            assert accepts(text[:size]) == one, text[:size]
            valid += one
    assert valid > 100


@pytest.mark.parametrize(
    "pattern",
    ["a(b", "a)", "*a", "[ab", "a{x}", "a{3,2}", "z", "^a", "a$", r"\ba", r"a\Z", r"(a)\1", "[b-a]", r"[a-\d]",
     "(?=a)a"],
)  # fmt: skip
def test_patterns_that_cannot_be_used_are_refused(pattern):
    with pytest.raises(ValueError, match="pattern"):
        decoding.from_regular_expression(pattern, LETTERS)


def test_punctuation_may_be_escaped():
    automaton = decoding.from_regular_expression(r"\^[$^\-\]]\$", ["^", "$", "-", "]"])
    found = {text for text in itertools.product(range(4), repeat=3) if automaton.matches(text)}
    assert found == {(0, i, 1) for i in range(4)}


def test_tokens_that_lead_alike_share_a_column():
    words = ["".join(letters) for size in (1, 2, 3) for letters in itertools.product("abcdefgh", repeat=size)]
    automaton = decoding.from_regular_expression(".{1,300}", [*words, "\n", ""])
    # One state for each number of characters; tokens of one, two, three, and those that are never allowed.
    assert automaton.table.shape == (301, 4) and automaton.num_tokens == len(words) + 2
    assert automaton.allowed(jnp.array([0, 298, 300]), None).sum(1).tolist() == [len(words), 8 + 64, 0]
    assert automaton.matches([500] * 100) and not automaton.matches([500] * 100 + [0])


@pytest.mark.parametrize("pattern", ["a{99999}", "(a{9999}){9999}", "(a|b)*a(a|b){20}", "((a?){1,100}){1,100}"])
def test_patterns_that_would_take_minutes_are_refused(pattern, monkeypatch):
    for name in ("MOST_STATES", "MOST_PARTS", "MOST_MEMBERS"):
        monkeypatch.setattr(f"genjax.decoding.regular_expression.{name}", 500)
    with pytest.raises(ValueError, match="needs too large an automaton, of more than 500 states"):
        decoding.from_regular_expression(pattern, LETTERS)
    monkeypatch.setattr("genjax.decoding.constraint.MOST_ENTRIES", 10)
    with pytest.raises(ValueError, match="a table over them and the vocabulary would take more than"):
        decoding.from_regular_expression("a{9}", LETTERS)


def test_groups_too_deep_are_refused():
    with pytest.raises(ValueError, match="groups within groups too deep"):
        decoding.from_regular_expression("(" * 2000 + "a" + ")" * 2000, LETTERS)


# What is written.

DIGITS = [*"0123456789", "ab", "a", "b", ""]
END = 13
FLAT = Decoder(
    lambda batch, length, ragged: jnp.zeros((batch,)),
    lambda memory, tokens: Step(jnp.zeros((*tokens.shape, len(DIGITS))), memory),
)
generate = jax.jit(
    lambda key, prompts, constraint, size, end: decoding.generate(
        FLAT, key, prompts, size, end_token=end, constraint=constraint
    ),
    static_argnums=(3, 4),
)


def texts_of(out):
    return ["".join(DIGITS[i] for i in row[:n]) for row, n in zip(np.asarray(out.tokens), np.asarray(out.lengths))]


@pytest.mark.parametrize("pattern, end", [("[0-9]{4}", None), ("(ab)*[0-9](aab|b){2}", None), ("(ab|ba)+[0-9]?", END)])
def test_all_that_is_written_matches_as_a_whole(pattern, end):
    constraint = decoding.from_regular_expression(pattern, DIGITS)
    prompts = jnp.zeros((200, 1), jnp.int32)
    out = generate(jax.random.key(0), prompts, constraint, 7, end)
    texts, inside = texts_of(out), np.arange(7)[None] < np.asarray(out.lengths)[:, None]
    assert all(re.fullmatch(pattern, text) for text in texts)
    assert len(set(texts)) > 20
    assert (np.asarray(out.tokens)[~inside] == (0 if end is None else END)).all()
    assert (np.asarray(out.log_probs)[~inside] == 0).all()
    stream = decoding.stream(FLAT, jax.random.key(0), prompts[0], 7, end_token=end, constraint=constraint)
    assert list(stream) == out.tokens[0, : int(out.lengths[0])].tolist()


def test_a_row_is_over_where_its_text_cannot_go_on():
    prompts, key = jnp.zeros((3, 1), jnp.int32), jax.random.key(1)
    nothing = decoding.from_regular_expression("", DIGITS)
    assert generate(key, prompts, nothing, 7, None).lengths.tolist() == [0, 0, 0]
    assert list(decoding.stream(FLAT, key, prompts[0], 7, constraint=nothing)) == []
    # With one token left, an even number of digits is whole already.
    pairs = decoding.from_regular_expression("([0-9][0-9])+", DIGITS)
    assert generate(key, prompts, pairs, 7, None).lengths.tolist() == [6, 6, 6]


def test_a_constraint_that_asks_for_more_tokens_than_there_are_is_refused():
    constraint = decoding.from_regular_expression("[0-9]{3}(ab)+", DIGITS)
    assert all(
        len(text) == 5 for text in texts_of(generate(jax.random.key(0), jnp.zeros((9, 1), int), constraint, 4, None))
    )
    with pytest.raises(ValueError, match="max_new_tokens=3 is too few for the constraint, whose shortest text has 4"):
        decoding.generate(FLAT, jax.random.key(0), jnp.zeros((1, 1), jnp.int32), 3, constraint=constraint)
    with pytest.raises(ValueError, match="max_new_tokens=3"):
        next(decoding.stream(FLAT, jax.random.key(0), jnp.zeros((1,), jnp.int32), 3, constraint=constraint))
    short = decoding.from_regular_expression("[0-9]", DIGITS[:-1])
    with pytest.raises(ValueError, match="the constraint is one of 13 tokens and the model has 14"):
        decoding.generate(FLAT, jax.random.key(0), jnp.zeros((1, 1), jnp.int32), 3, constraint=short)


def test_a_grammar_may_be_a_table():
    # Token 0 opens a bracket and 1 closes one, at most two deep.
    brackets = decoding.Automaton.from_table(np.array([[1, -1], [2, 0], [-1, 1]]), np.array([True, False, False]))
    assert brackets.shortest.tolist() == [2, 1, 2]
    assert brackets.matches([0, 0, 1, 1, 0, 1]) and not brackets.matches([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="no text of these tokens"):
        decoding.Automaton.from_table(np.array([[0], [1]]), np.array([False, True]))


@pytest.mark.parametrize("strings", [("ab",), ("bb", "abc"), ("abab", "ca"), ("c",)])
def test_stop_strings_are_heard_wherever_tokens_divide_them(strings):
    automaton = decoding.stop_strings(strings, LETTERS)
    for size in range(6):
        for tokens in itertools.product(range(5), repeat=size):
            state = jnp.array([automaton.start]) if size < 3 else np.array([automaton.start])
            for token in tokens:
                if size < 3:
                    state = automaton.advance(state, jnp.array([token]))
                else:
                    after = np.asarray(automaton.table)[state, np.asarray(automaton.kinds)[[token]]]
                    state = np.where(after < 0, state, after)
            text = "".join(LETTERS[token] for token in tokens)
            heard = bool(np.asarray(automaton.accepting)[np.asarray(state)[0]])
            assert heard == any(string in text for string in strings), text


@pytest.mark.parametrize(
    "strings, words", [((), "one text or more"), (("a", ""), "none of them empty"), (("x",), "write none")]
)
def test_stop_strings_that_cannot_be_are_refused(strings, words):
    with pytest.raises(UserError, match=words):
        decoding.stop_strings(strings, LETTERS)
