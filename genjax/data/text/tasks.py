"""A made mixture of text-to-text tasks whose answers a program can check.

    sum: 47-29                                                  17-9=8, 4-2-1=1: 18
    reverse: kqzma                                              amzqk
    date: 4 March 1987                                          1987-03-04
    slots: table for 4 in Rome at 7 pm                          city=Rome;people=4;time=7 pm
    table: name city age|Ann Rome 31|Bob Oslo 25? city of Bob   Bob Oslo 25: Oslo
    summary: Ann has 3 figs. It rains. Buys 4 more.             Ann has 7 figs.

Sums are worked out column by column before the answer, and the row of a table is quoted before its value, as in Nye et
al. 2021 (arXiv:2112.00114): a model needs many times as many examples to learn an answer that takes several steps at
once.

`make_example` draws an example of a seed; `solve` reads the source alone and works out the answer, and shares no code
with the maker but the words.  An example belongs to one split by a checksum of its source, so that no source of the
test split is trained on; a sum in the other order counts as the same.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from genjax.errors import UserError

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "Jill", "Kim", "Leo")
CITIES = ("Rome", "Oslo", "Lima", "Cairo", "Paris", "Delhi", "Quito", "Tokyo", "Accra", "Bern")
ITEMS = ("figs", "pens", "eggs", "cups", "nuts", "keys", "maps", "hats")
ASIDES = ("It rains.", "The sun is up.", "Birds sing.", "It is late.")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TASKS = ("sum", "reverse", "date", "slots", "table", "summary")
#: Shares of the splits, in tenths of the checksum's values.
_SPLIT_OF_TENTH = {0: "test", 1: "validation"}


# ----------------------------------------------------------------------------------------------------------------------
# Making


def _pick(rng: np.random.Generator, options: tuple[str, ...] | str) -> str:
    return options[int(rng.integers(len(options)))]


def _sum(rng: np.random.Generator) -> tuple[str, str]:
    first, second = (int(n) for n in rng.integers(0, 100, 2))
    adds = bool(rng.integers(2))
    sign, first, second = ("+", first, second) if adds else ("-", max(first, second), min(first, second))
    (tens, units), (other_tens, other_units) = divmod(first, 10), divmod(second, 10)
    if adds:
        units_sum = units + other_units
        moved = units_sum >= 10
        tens_sum, total = tens + other_tens + moved, first + second
    else:
        moved = units < other_units
        units, units_sum = units + 10 * moved, units + 10 * moved - other_units
        tens_sum, total = tens - other_tens - moved, first - second
    columns = (
        f"{units}{sign}{other_units}={units_sum}, {tens}{sign}{other_tens}{f'{sign}1' if moved else ''}={tens_sum}"
    )
    return f"{first}{sign}{second}", f"{columns}: {total}"


def _reverse(rng: np.random.Generator) -> tuple[str, str]:
    word = "".join(_pick(rng, LETTERS) for _ in range(rng.integers(3, 9)))
    return word, word[::-1]


def _date(rng: np.random.Generator) -> tuple[str, str]:
    day, month, year = rng.integers(1, 29), rng.integers(1, 13), rng.integers(1900, 2100)
    name = MONTHS[month - 1]
    form = rng.integers(3)
    text = (f"{day} {name} {year}", f"{name} {day}, {year}", f"{day}.{month}.{year}")[form]
    return text, f"{year}-{month:02d}-{day:02d}"


def _slots(rng: np.random.Generator) -> tuple[str, str]:
    people, hour = rng.integers(1, 10), rng.integers(1, 13)
    city, half = _pick(rng, CITIES), _pick(rng, ("am", "pm"))
    parts = [f"for {people}", f"in {city}", f"at {hour} {half}"]
    return "table " + " ".join(parts[i] for i in rng.permutation(3)), f"city={city};people={people};time={hour} {half}"


def _table(rng: np.random.Generator) -> tuple[str, str]:
    names = rng.choice(len(NAMES), 2, replace=False)
    rows = [{"name": NAMES[i], "age": str(rng.integers(10, 100)), "city": _pick(rng, CITIES)} for i in names]
    order = ["name", *(("age", "city")[i] for i in rng.permutation(2))]
    text = "|".join([" ".join(order), *(" ".join(row[column] for column in order) for row in rows)])
    asked, column = rows[int(rng.integers(2))], _pick(rng, ("age", "city"))
    row = " ".join(asked[column] for column in order)
    return f"{text}? {column} of {asked['name']}", f"{row}: {asked[column]}"


def _summary(rng: np.random.Generator) -> tuple[str, str]:
    name, item, aside = _pick(rng, NAMES), _pick(rng, ITEMS), _pick(rng, ASIDES)
    first, second = int(rng.integers(1, 10)), int(rng.integers(1, 10))
    gains = bool(rng.integers(2)) or second >= first
    change = f"Buys {second} more." if gains else f"Loses {second}."
    sentences = [f"{name} has {first} {item}.", change]
    sentences.insert(int(rng.integers(3)), aside)
    return " ".join(sentences), f"{name} has {first + second if gains else first - second} {item}."


_MAKERS = {"sum": _sum, "reverse": _reverse, "date": _date, "slots": _slots, "table": _table, "summary": _summary}


def split_of(source: str) -> str:
    """The split that a source belongs to: test and validation have a tenth of all sources each.

    Two sums that differ only in the order of their terms belong to the same split, as one would give the other away.
    """
    if found := re.fullmatch(r"sum: (\d+)\+(\d+)", source):
        source = f"sum: {'+'.join(sorted(found.groups()))}"
    return _SPLIT_OF_TENTH.get(zlib.crc32(source.encode()) % 10, "train")


def make_example(split: str, index: int, tasks: tuple[str, ...] = TASKS) -> tuple[str, str, str]:
    """Example `index` of a split, the same in every process.

    Args:
      split: train, validation or test.
      index: number from 0; tasks take turns.
      tasks: which tasks.

    Returns:
      Task, source with the task as its prefix, target.
    """
    task = tasks[index % len(tasks)]
    rng = np.random.default_rng([zlib.crc32(split.encode()), index])
    while True:
        text, target = _MAKERS[task](rng)
        source = f"{task}: {text}"
        if split_of(source) == split:
            return task, source, target


# ----------------------------------------------------------------------------------------------------------------------
# Checking


def solve(source: str) -> str:
    """The answer to a source, worked out from its text.

    Raises:
      UserError: the source belongs to no task.
    """
    task, _, text = source.partition(": ")
    match task:
        case "sum" if found := re.fullmatch(r"(\d+)([+-])(\d+)", text):
            sign, moved, columns = found[2], 0, []
            for place in (1, 0):
                x, y = (int(number.zfill(2)[place]) for number in (found[1], found[3]))
                if sign == "-" and x - y - moved < 0:
                    x += 10
                value = x + y + moved if sign == "+" else x - y - moved
                columns.append(f"{x}{sign}{y}{f'{sign}1' * moved}={value}")
                moved = int(value > 9 if sign == "+" else x > 9)
            return f"{', '.join(columns)}: {int(found[1]) + int(sign + found[3])}"
        case "reverse":
            return "".join(reversed(text))
        case "date":
            numbers = [int(n) for n in re.findall(r"\d+", text)]
            month = next((i + 1 for i, name in enumerate(MONTHS) if name in text), None)
            day, year = numbers[0], numbers[-1]
            return f"{year}-{month or numbers[1]:02d}-{day:02d}"
        case "slots" if found := re.search(r" at (\d+ [ap]m)", text):
            people, city = re.search(r" for (\d+)", text), re.search(r" in (\w+)", text)
            return f"city={city[1]};people={people[1]};time={found[1]}"
        case "table":
            table, _, question = text.partition("? ")
            column, _, name = question.partition(" of ")
            header, *rows = (row.split(" ") for row in table.split("|"))
            row = next(row for row in rows if name in row)
            return f"{' '.join(row)}: {row[header.index(column)]}"
        case "summary" if found := re.search(r"(\w+) has (\d+) (\w+)\.", text):
            change = re.search(r"(Buys|Loses) (\d+)", text)
            total = int(found[2]) + int(change[2]) * (1 if change[1] == "Buys" else -1)
            return f"{found[1]} has {total} {found[3]}."
    raise UserError(f"{source[:60]!r} belongs to no task of the mixture: {', '.join(TASKS)}")
