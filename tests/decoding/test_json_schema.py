"""JSON schemas as regular expressions: every match is JSON that the schema accepts; what is not obeyed is refused."""

import json
import math
import re

import jax
import jax.numpy as jnp
import pytest

from genjax import decoding
from genjax.decoding.json_schema import ANY_OBJECT, pattern_of_schema
from genjax.errors import UserError
from genjax.families.language.gpt import GPT
from genjax.nn.transformer import Transformer

PERSON = {
    "type": "object",
    "$defs": {"city": {"properties": {"name": {"type": "string", "maxLength": 5}}, "required": ["name"]}},
    "properties": {
        "nick": {"type": "string", "minLength": 1, "maxLength": 3},
        "age": {"type": "integer"},
        "kind": {"enum": ["a\"b", None, 1.5]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        "home": {"anyOf": [{"$ref": "#/$defs/city"}, {"type": "null"}]},
    },
    "required": ["age", "tags"],
}  # fmt: skip


def accepts(schema, value):
    # The syntax that is used here is Python's too.
    return re.fullmatch(pattern_of_schema(schema), json.dumps(value, ensure_ascii=False)) is not None


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        (PERSON, {"age": 3, "tags": [True]}, {"tags": [True], "age": 3}),
        (PERSON, {"nick": "ab", "age": -3, "kind": 'a"b', "tags": [True, False], "home": {"name": "é"}}, {"age": 3}),
        (PERSON, {"age": 3, "kind": None, "tags": [False], "home": None}, {"age": 3, "tags": []}),
        (PERSON, {"nick": "\n", "age": 0, "tags": [True]}, {"nick": "", "age": 0, "tags": [True]}),
        ({"properties": {"a": {"type": "null"}, "b": {"type": "null"}}}, {"b": None}, {"b": None, "a": None}),
        ({"properties": {"a": {"type": "null"}, "b": {"type": "null"}}}, {}, {"c": None}),
        ({"type": ["integer", "null"]}, None, 1.5),
        ({"type": "number"}, -1.5e-07, "1"),
        ({"type": "array", "items": {"const": 1}}, [1, 1, 1], [2]),
        ({"type": "array", "items": {"const": 1}, "maxItems": 0}, [], [1]),
        ({"type": "string", "format": "date"}, "2024-02-28", "2024-02-31"),
        ({"type": "object"}, {}, {"a": 1}),
        ({"type": "object", "additionalProperties": True}, {"a": 1}, [1]),
        (True, {"a": 1.5}, {"a": [1]}),
    ],
)
def test_values_that_match_are_those_that_the_schema_accepts(schema, yes, no):
    if schema == {"type": "array", "items": {"const": 1}, "maxItems": 0}:
        assert not accepts(schema, no)
    assert accepts(schema, yes) and not accepts(schema, no)


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1000, 1000), (0, 0), (7, 1204), (-305, -17), (-3, 98), (999, 1001), (2.5, 10.5), (None, 5), (95, None)],
)
def test_integers_lie_between_their_bounds(low, high):
    for exclusive in (False, True):
        names = ("exclusiveMinimum", "exclusiveMaximum") if exclusive else ("minimum", "maximum")
        schema = {"type": "integer", **{name: bound for name, bound in zip(names, (low, high)) if bound is not None}}
        if exclusive and low == high:
            continue
        pattern = re.compile(pattern_of_schema(schema))
        lower, upper = -math.inf if low is None else low, math.inf if high is None else high
        for value in (*range(-1300, 1301), 10**14, -(10**14)):
            inside = lower < value < upper if exclusive else lower <= value <= upper
            assert (pattern.fullmatch(str(value)) is not None) == inside, value
        assert not pattern.fullmatch("007") and not pattern.fullmatch("-007")


def test_any_object_is_json_without_a_schema():
    for value in ({}, {"a": 'b\\c"d', "e": [1, None], "f": {"g": 1}}):
        assert re.fullmatch(ANY_OBJECT, json.dumps(value))
    assert not re.fullmatch(ANY_OBJECT, '{"a": "line\nbreak"}') and not re.fullmatch(ANY_OBJECT, '{"a": 01}')


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "#"}, "refers to itself by #"),
        ({"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}, "by #/\\$defs/n"),
        ({"$ref": "other.json"}, "only references within the schema"),
        ({"$ref": "#/$defs/x"}, "which the schema does not have"),
        ({"type": "number", "minimum": 3}, "has 'minimum', which the automaton does not check"),
        ({"type": ["number", "integer"], "maximum": 3}, "has 'maximum', which the automaton does not check"),
        ({"type": "integer", "minimum": 3, "exclusiveMaximum": 3}, "no integer between its bounds"),
        ({"type": "integer", "minimum": "3"}, "minimum of the schema must be a number"),
        ({"type": "thing"}, "must be one of object, array"),
        ({"type": "string", "format": "email"}, "must be one of date"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "minItems=3 above maxItems=2"),
        ({"type": "array", "maxItems": 10**6}, "between 0 and 1000"),
        ({"enum": []}, "at least one value"),
        ({"enum": [1, float("nan")]}, "enum of the schema has NaN or infinity, which JSON does not have"),
        ({"const": [float("inf")]}, "has NaN or infinity"),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
            },
            "anyOf of #/.defs/b refers to itself by #/.defs/a",
        ),
        ({"properties": {}, "required": ["a"]}, "requires 'a'"),
        ({"allOf": [{}, {}]}, "allOf of one alone"),
        ({"properties": {"a": {"minItems": 0, "items": 3}}}, "items of a of the schema must be an object"),
    ],
)
def test_what_an_automaton_cannot_obey_is_refused_by_name(schema, message):
    with pytest.raises(UserError, match=message):
        pattern_of_schema(schema)


def test_notes_alone_constrain_nothing():
    assert pattern_of_schema({"title": "thing"}) == pattern_of_schema({}) == pattern_of_schema(True)


def test_a_schema_too_large_is_one_short_sentence():
    deep = {"type": "null"}
    for _ in range(30):
        deep = {"type": "array", "items": {"anyOf": [deep, deep]}}
    with pytest.raises(UserError, match="makes too long a pattern; give a smaller schema") as caught:
        pattern_of_schema(deep)
    assert len(str(caught.value)) < 200


def test_a_thousand_texts_of_a_random_network_parse():
    pieces = [bytes([byte]) for byte in range(256)] + [b'{"', b'": ', b"true"]
    network = Transformer(num_layers=1, width=8, num_heads=2, max_length=128)
    model = GPT(network=network, vocab_size=len(pieces), sequence_length=100)
    state = model.init(jax.random.key(0), {"tokens": jnp.zeros((1, 4), jnp.int32)})
    automaton = decoding.from_regular_expression(pattern_of_schema(PERSON), pieces)
    write = jax.jit(lambda key: model.generate(
        state, key, jnp.zeros((1000, 1), jnp.int32), 100, constraint=automaton, end_token=None
    ))  # fmt: skip
    out = write(jax.random.key(1))
    seen = set()
    for tokens, length in zip(out.tokens.tolist(), out.lengths.tolist()):
        value = json.loads(b"".join(pieces[token] for token in tokens[:length]))
        assert isinstance(value["age"], int) and 1 <= len(value["tags"]) <= 2
        assert value.get("kind") in ('a"b', None, 1.5) and len(value.get("nick", "x")) in (1, 2, 3)
        seen.add(tuple(value))
    assert len(seen) > 3
