"""What a step of select is once its settings are checked: the columns it reads, and a function that writes `verdict`.

The function finds its columns for the surviving rows in the table `here` and writes one row into `verdict` for every
row it drops. The one thing a reader would get wrong: a step never touches `rows`; what an earlier step dropped is not
in `here`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb

from headrace.curation.select.expression import Checker, OrderItem
from headrace.curation.select.load import HASH_COLUMNS, HINTS, IDENTITY, word_column
from headrace.curation.select.steps.configs import Limits


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step learnt besides its verdicts."""

    threshold: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """What a step may use while it runs."""

    connection: duckdb.DuckDBPyConnection
    limits: Limits
    num_input: int
    """Rows that were fetched and decoded: what `of: input` counts."""
    num_here: int
    """Rows in `here`."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step ready to run."""

    columns: tuple[str, ...]
    """The columns it reads; a hash column brings its words along."""
    run: Callable[[Bench], Outcome]


def require(checker: Checker, columns: Iterable[str], where: str) -> None:
    """Raise ValueError if a column is missing, naming the annotator that makes it."""
    known = set(checker.names())
    for name in columns:
        if name not in known:
            raise ValueError(
                f"{where} needs the column {name!r}, which no annotator of this recipe makes; {HINTS[name]}"
            )


def stored_columns(columns: Sequence[str]) -> list[str]:
    """Return the columns of `rows` that hold `columns`."""
    words = [word_column(name, word) for name in columns if name in HASH_COLUMNS for word in range(4)]
    return list(dict.fromkeys([*columns, *words]))


def order_columns(order: Sequence[OrderItem]) -> str:
    """Return SQL for the keys of an order as columns `__order_0`, ...; starts with a comma."""
    return "".join(f", {item.expression.sql} AS __order_{number}" for number, item in enumerate(order))


def order_by(order: Sequence[OrderItem]) -> str:
    """Return what follows ORDER BY over `order_columns`: nulls and NaN last, ties by uid, input_file, input_row."""
    keys = []
    for number, item in enumerate(order):
        name = f"__order_{number}"
        key = f"CASE WHEN isnan({name}) THEN NULL ELSE {name} END" if item.expression.is_float else name
        keys.append(f"{key} {'DESC' if item.descending else 'ASC'} NULLS LAST")
    return ", ".join([*keys, *(f"{name} ASC NULLS LAST" for name in IDENTITY)])


def columns_of(order: Sequence[OrderItem]) -> tuple[str, ...]:
    """Return the columns an order reads, ties included."""
    return tuple(dict.fromkeys([*IDENTITY, *(name for item in order for name in item.expression.columns)]))
