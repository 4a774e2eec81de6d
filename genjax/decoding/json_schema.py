"""JSON schemas as regular expressions, so that an automaton makes every text of a model parse.

A regular expression counts nothing without a bound and remembers nothing, so that of JSON schema it has: the types,
enum, const, anyOf and oneOf, local references, objects whose keys come in the order of their properties, arrays of one
kind of item with bounds, strings with bounds or of a few formats, integers with bounds.  What it does not have is
refused by name, and so are schemas that refer to themselves.  JSON is written with ", " and ": ", as Python writes it.

    pattern_of_schema({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]})
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from genjax.errors import UserError

#: Keywords that constrain nothing.
_NOTES = frozenset(
    (
        "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "strict",
        "$schema", "$id", "$comment", "$defs", "definitions",
    )
)  # fmt: skip
#: Keywords of each type.
_KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
}
#: Largest bound of a repetition, and length of a pattern.
MOST_REPEATED, LONGEST_PATTERN = 1000, 200_000

# A character that stands for itself, or an escaped one; \u escapes say nothing that these do not.
_CHARACTER = rf'([^"\\{chr(0)}-{chr(31)}{chr(127)}]|\\["\\/bfnrt])'
_STRING = f'"{_CHARACTER}*"'
# As many digits as numbers of 64 bits keep.
_MOST_DIGITS = 15
_INTEGER = r"-?(0|[1-9][0-9]{0,14})"
_NUMBER = rf"{_INTEGER}(\.[0-9]{{1,15}})?([eE][-+]?[0-9]{{1,2}})?"
_DATE, _TIME = r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])", r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_FORMATS = {
    "date": _DATE,
    "time": f"{_TIME}Z",
    "date-time": f"{_DATE}T{_TIME}Z",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
_SIMPLE = {"integer": _INTEGER, "number": _NUMBER, "boolean": "(true|false)", "null": "null"}


def _any_value(depth: int) -> str:
    """Any value with at most `depth` arrays and objects within each other."""
    simple = f"({_STRING}|{_NUMBER}|true|false|null)"
    if depth == 0:
        return simple
    inner = _any_value(depth - 1)
    return f"({simple}|{_repeated(inner, 0, None)}|{_any_object(depth)})"


def _any_object(depth: int) -> str:
    pair = f"{_STRING}: {_any_value(depth - 1)}"
    return rf"\{{({pair}(, {pair})*)?\}}"


def _repeated(item: str, low: int, high: int | None) -> str:
    """An array of between `low` and `high` items."""
    if high == 0:
        return r"\[\]"
    bounds = f"{{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
    some = f"{item}(, {item}){bounds}"
    return rf"\[({some})?\]" if low == 0 else rf"\[{some}\]"


#: Any object whose values are simple, or arrays and objects of simple values.
ANY_OBJECT = _any_object(2)


def pattern_of_schema(schema: Mapping[str, Any] | bool) -> str:
    """A regular expression of texts that a JSON schema accepts; see `decoding.from_regular_expression`.

    Raises:
      UserError: the schema has a keyword that is not known here, refers to itself, or is too large.
    """
    try:
        pattern = _Schema(schema).pattern(schema, "the schema", ())
    except RecursionError:
        raise UserError("the schema has schemas within each other too deep to be read") from None
    return pattern


class _Schema:
    """A whole schema, which its parts may refer to."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.size = 0

    def pattern(self, schema: Any, place: str, open_references: tuple[str, ...]) -> str:
        """The pattern of a part; `open_references` are the references that led to it."""
        made = self._made(schema, place, open_references)
        self.size += len(made)
        if self.size > LONGEST_PATTERN:
            raise UserError(f"{_short(place)} makes too long a pattern; give a smaller schema")
        return made

    def _made(self, schema: Any, place: str, open_references: tuple[str, ...]) -> str:
        if schema is True:
            return _any_value(1)
        if not isinstance(schema, Mapping):
            raise UserError(f"{place} must be an object of JSON schema")
        given = {name: value for name, value in schema.items() if name not in _NOTES}
        if not given:
            return _any_value(1)
        if "$ref" in given:
            _check(given, {"$ref"}, place)
            reference = given["$ref"]
            if reference in open_references:
                raise UserError(f"{place} refers to itself by {reference}, and an automaton has no recursion")
            return self.pattern(self._found(reference, place), reference, (*open_references, reference))
        if "enum" in given or "const" in given:
            _check(given, {"enum", "const", "type"}, place)
            values = given["enum"] if "enum" in given else [given["const"]]
            if not isinstance(values, list) or not values:
                raise UserError(f"enum of {place} must be a list of at least one value")
            try:
                texts = [json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values]
            except ValueError:
                raise UserError(f"enum of {place} has NaN or infinity, which JSON does not have") from None
            return _either([escaped(text) for text in texts])
        for name in ("anyOf", "oneOf", "allOf"):
            if name in given:
                _check(given, {name}, place)
                options = given[name]
                if not isinstance(options, list) or not options or (name == "allOf" and len(options) > 1):
                    raise UserError(f"{name} of {place} must be a list of schemas, and allOf of one alone")
                return _either([self.pattern(each, f"{name} of {place}", open_references) for each in options])
        kind = given.pop("type", None)
        if kind is None:
            kind = next((k for k, names in _KEYWORDS.items() if names & set(given)), None)
        kinds = kind if isinstance(kind, list) else [kind]
        if not kinds or not all(isinstance(each, str) and each in _KEYWORDS for each in kinds):
            raise UserError(f"the type of {place} must be one of {', '.join(_KEYWORDS)}")
        _check(given, set().union(*(_KEYWORDS[each] for each in kinds)), place)
        if "number" in kinds:
            _check(given, set().union(*_KEYWORDS.values()) - _KEYWORDS["integer"], place)
        return _either([self._of_type(each, given, place, open_references) for each in kinds])

    def _of_type(self, kind: str, given: Mapping[str, Any], place: str, open_references: tuple[str, ...]) -> str:
        if kind == "object":
            return self._object(given, place, open_references)
        if kind == "array":
            item = self.pattern(given.get("items", True), f"items of {place}", open_references)
            return _repeated(item, *_bounds(given, "minItems", "maxItems", place))
        if kind == "integer" and _KEYWORDS["integer"] & set(given):
            return _integer(given, place)
        if kind != "string":
            return _SIMPLE[kind]
        if "format" in given:
            if given["format"] not in list(_FORMATS):
                raise UserError(f"format of {place} must be one of {', '.join(_FORMATS)}")
            return f'"{_FORMATS[given["format"]]}"'
        low, high = _bounds(given, "minLength", "maxLength", place)
        return f'"{_CHARACTER}{{{low},{"" if high is None else high}}}"'

    def _object(self, given: Mapping[str, Any], place: str, open_references: tuple[str, ...]) -> str:
        """Pairs in the order of the properties; those that are not required may be left out."""
        properties, required = given.get("properties", {}), given.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, Sequence):
            raise UserError(f"properties of {place} must be an object, and required a list")
        unknown = [name for name in required if name not in properties]
        if unknown:
            raise UserError(f"{place} requires {unknown[0]!r}, which is not among its properties")
        if not isinstance(given.get("additionalProperties", False), bool):
            raise UserError(f"additionalProperties of {place} must be false: keys come from properties alone")
        if not properties:
            return _any_object(1) if given.get("additionalProperties") is True else r"\{\}"
        pairs = [
            f"{escaped(json.dumps(name, ensure_ascii=False))}: "
            f"{self.pattern(schema, f'{name} of {place}', open_references)}"
            for name, schema in properties.items()
        ]
        needed = [name in required for name in properties]
        return rf"\{{{_in_order(pairs, needed)}\}}"

    def _found(self, reference: Any, place: str) -> Any:
        """What a reference such as #/$defs/name stands for."""
        value = self.root
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise UserError(f"{place} refers to {str(reference)[:40]}; only references within the schema are read")
        for name in reference.split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(value, Mapping) or name not in value:
                raise UserError(f"{place} refers to {reference}, which the schema does not have")
            value = value[name]
        return value


def _short(place: str, most: int = 100) -> str:
    """The beginning of a place, which names everything around it."""
    return place if len(place) <= most else f"{place[: most - 1]}…"


def _in_order(pairs: Sequence[str], needed: Sequence[bool]) -> str:
    """Pairs with commas between them, some of which may be left out."""
    if any(needed):
        # Commas stand behind pairs that come before the first needed pair, and before pairs that come after it.
        first = list(needed).index(True)
        before = "".join(f"({pair}, )?" for pair in pairs[:first])
        rest = zip(pairs[first + 1 :], needed[first + 1 :])
        return before + pairs[first] + "".join(f"(, {pair})" if must else f"(, {pair})?" for pair, must in rest)
    starts = [pair + "".join(f"(, {later})?" for later in pairs[i + 1 :]) for i, pair in enumerate(pairs)]
    return f"({'|'.join(starts)})?"


def _integer(given: Mapping[str, Any], place: str) -> str:
    """Integers between bounds."""
    most = 10**_MOST_DIGITS - 1
    low, high = -most, most
    for name in sorted(_KEYWORDS["integer"] & set(given)):
        bound = given[name]
        if type(bound) not in (int, float) or bound != bound:
            raise UserError(f"{name} of {place} must be a number")
        bound = min(max(bound, -most - 2), most + 2)
        if name == "minimum":
            low = max(low, math.ceil(bound))
        elif name == "exclusiveMinimum":
            low = max(low, math.floor(bound) + 1)
        elif name == "maximum":
            high = min(high, math.floor(bound))
        else:
            high = min(high, math.ceil(bound) - 1)
    if low > high:
        raise UserError(f"{place} has no integer between its bounds")
    parts = []
    if low < 0:
        parts += [f"-{part}" for part in _digits(max(1, -high), -low)]
    if high >= 0:
        parts += _digits(max(0, low), high)
    return _either(parts)


def _digits(low: int, high: int) -> list[str]:
    """Patterns of the decimal numbers from `low` to `high`, both at least 0."""
    parts = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        parts.append(_same_length(str(first), str(last)))
    return parts


def _same_length(low: str, high: str) -> str:
    """A pattern of the numbers between two of as many digits."""
    rest = len(low) - 1
    if not rest or (set(low[1:]) == {"0"} and set(high[1:]) == {"9"}):
        first = low[0] if low[0] == high[0] else f"[{low[0]}-{high[0]}]"
        return first + (f"[0-9]{{{rest}}}" if rest else "")
    if low[0] == high[0]:
        return low[0] + _same_length(low[1:], high[1:])
    below, above = low[0] + _same_length(low[1:], "9" * rest), high[0] + _same_length("0" * rest, high[1:])
    between = []
    if int(high[0]) - int(low[0]) > 1:
        between = [_same_length(f"{int(low[0]) + 1}{'0' * rest}", f"{int(high[0]) - 1}{'9' * rest}")]
    return _either([below, *between, above])


def escaped(text: str) -> str:
    """A pattern that matches a text alone."""
    return "".join(f"\\{c}" if c in r"\.[](){}|*+?^$-" else c for c in text)


def _either(patterns: Sequence[str]) -> str:
    return patterns[0] if len(patterns) == 1 else f"({'|'.join(patterns)})"


def _check(given: Mapping[str, Any], known: set[str], place: str) -> None:
    """Refuses keywords that would not be obeyed."""
    unknown = sorted(set(given) - known)
    if unknown:
        raise UserError(f"{place} has {unknown[0]!r}, which the automaton does not check; leave it out")


def _bounds(given: Mapping[str, Any], low: str, high: str, place: str) -> tuple[int, int | None]:
    least, most = given.get(low, 0), given.get(high)
    for name, value in ((low, least), (high, most)):
        if value is not None and (type(value) is not int or not 0 <= value <= MOST_REPEATED):
            raise UserError(f"{name} of {place} must be a number between 0 and {MOST_REPEATED}")
    if most is not None and most < least:
        raise UserError(f"{place} has {low}={least} above {high}={most}")
    return least, most
