"""SQL expressions of a recipe: one expression over one row, the same answer every time, or a ValueError.

DuckDB parses the text and hands back its syntax tree; only the shapes and functions of row-wise, repeatable expressions
pass: no second statement, subquery, window, aggregate, clock, random number or setting. A checked text may only be used
as `(\\n{text}\\n) AS alias`, the very shape it was checked in.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import duckdb

from headrace.text import known_words, shown

PROBE = "probe"
UNKNOWN = "UNKNOWN"
TEXT_HINT = "; a csv list carries text: write try_cast(COLUMN as double), which is null where there is no number"

_ROW_WISE = "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR TYPE"
_CLASSES = frozenset(_ROW_WISE.split(" "))
# Functions that DuckDB calls consistent but that look at the clock, at the engine or at other SQL.
_REFUSED = re.compile(r"^(__.*|current_.*|json_(de)?serialize.*|age|error|version|stats|getvariable|txid_.*)$")
# Functions whose value may be of any size whatever their arguments: DuckDB computes them, where the arguments are
# constants, while a rule is only checked: `len(range(1000000000))` took a minute and 14 GB.
_UNBOUNDED = re.compile(
    r"^(range|generate_series|repeat|lpad|rpad|(list|array)_resize|bitstring|equi_width_bins|printf|format)$"
)
MAX_TEXT = 10_000
"""Letters of one expression."""
_MACROS = re.compile(r"^((list|array)_.*|nullif|ifnull|if|split_part|fmod|fdiv|date_add|days_in_month|json)$")
_DIRECTION = re.compile(r"^(?P<text>.*?)(?:\s+(?P<direction>asc|desc))?\s*$", re.IGNORECASE | re.DOTALL)
_INTEGERS = frozenset(
    f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
)
_FLOATS = frozenset(("FLOAT", "DOUBLE"))


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression."""

    text: str
    type: str
    """DuckDB's name of its type."""
    columns: tuple[str, ...]
    """The columns it reads, as the tables spell them, sorted."""

    @property
    def sql(self) -> str:
        """The text in the only shape it may be used in."""
        return f"(\n{self.text}\n)"

    @property
    def is_number(self) -> bool:
        """True for integers, floats and decimals."""
        return self.type in (*_INTEGERS, UNKNOWN) or self.is_float or self.type.startswith("DECIMAL")

    @property
    def is_float(self) -> bool:
        """True if the value may be NaN."""
        return self.type in _FLOATS


@dataclass(frozen=True, slots=True)
class OrderItem:
    """One key of an order."""

    expression: Expression
    descending: bool


class Checker:
    """Checks expressions against the columns of one job."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        columns: Mapping[str, str],
        hints: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`columns` maps a name to its DuckDB type, `hints` the name of a column that is not there to what to do.

        Creates the empty table that expressions are bound to. What reads a column of type `UNKNOWN` is only parsed.
        """
        self._connection = connection
        self._hints = hints
        self._untyped = frozenset(name for name, kind in columns.items() if kind == UNKNOWN)
        self._columns = {name.lower(): name for name in columns}
        self._functions = _allowed_functions()
        fields = ", ".join(f"{quoted(name)} {kind}" for name, kind in columns.items() if kind != UNKNOWN)
        connection.execute(f"CREATE OR REPLACE TABLE {PROBE} ({fields})")

    def check(self, text: str, where: str) -> Expression:
        """Return the checked expression. Raises ValueError naming `where`, the fault and the known columns."""
        if not text.strip():
            raise ValueError(f"{where}: the SQL expression is empty")
        if len(text) > MAX_TEXT:
            raise ValueError(f"{where}: the SQL expression has {len(text)} letters, at most {MAX_TEXT} are read")
        try:
            names = list(self._walk(self._parse(text, where), where, frozenset()))
        except RecursionError:
            raise ValueError(f"{where}: {shown(text)} is nested too deep") from None
        read = set()
        for name in names:
            if name.lower() not in self._columns:
                known = known_words(name, self.names(), what="known columns")
                if name.lower() in self._hints:
                    known = f"{self._hints[name.lower()]}; known columns: {', '.join(self.names())}"
                raise ValueError(f"{where}: unknown column {name!r}; {known}")
            read.add(self._columns[name.lower()])
        if read & self._untyped:
            return Expression(text, UNKNOWN, tuple(sorted(read)))
        try:
            query = f"DESCRIBE SELECT (\n{text}\n) AS value FROM {PROBE}"
            kind = self._connection.execute(query).fetchall()[0][1]
        except duckdb.Error as error:
            hint = TEXT_HINT if "VARCHAR" in first_line(error) else ""
            raise ValueError(f"{where}: {shown(text)}: {first_line(error)}{hint}") from None
        return Expression(text, kind, tuple(sorted(read)))

    def check_boolean(self, text: str, where: str) -> Expression:
        """Check an expression that must be true or false."""
        found = self.check(text, where)
        if found.type not in ("BOOLEAN", UNKNOWN):
            raise ValueError(f"{where}: {shown(text)} must be true or false, but it is of type {found.type}")
        return found

    def check_number(self, text: str, where: str) -> Expression:
        """Check an expression that must be a number."""
        found = self.check(text, where)
        if not found.is_number:
            hint = TEXT_HINT if found.type == "VARCHAR" else ""
            raise ValueError(f"{where}: {shown(text)} must be a number, but it is of type {found.type}{hint}")
        return found

    def check_order(self, order: Iterable[str], where: str) -> tuple[OrderItem, ...]:
        """Check `EXPRESSION [asc|desc]` items."""
        items = []
        for text in order:
            match = _DIRECTION.match(text)
            assert match is not None  # the pattern matches any text
            expression = self.check(match["text"], f"{where}: order")
            items.append(OrderItem(expression, (match["direction"] or "").lower() == "desc"))
        return tuple(items)

    def require(self, columns: Iterable[str], where: str) -> None:
        """Raise ValueError if a column is missing, saying what to do."""
        for name in columns:
            if name.lower() not in self._columns:
                hint = self._hints.get(name, "carry it from the list with input.columns")
                raise ValueError(f"{where} needs the column {name!r}, which no annotator of this recipe makes; {hint}")

    def names(self) -> list[str]:
        """Return the known columns."""
        return sorted(self._columns.values())

    def _parse(self, text: str, where: str) -> Any:
        query = f"SELECT (\n{text}\n) AS value FROM {PROBE}"
        row = self._connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
        parsed = json.loads(row[0][0])
        if parsed["error"]:
            raise ValueError(f"{where}: {shown(text)}: {str(parsed['error_message']).splitlines()[0]}")
        template = json.loads(
            self._connection.execute(
                "SELECT json_serialize_sql(?::VARCHAR)", [f"SELECT 1 AS value FROM {PROBE}"]
            ).fetchall()[0][0]
        )
        nodes = [without_locations(tree["statements"]) for tree in (parsed, template)]
        selected = [node[0]["node"].pop("select_list", []) for node in nodes]
        if nodes[0] != nodes[1] or len(selected[0]) != 1 or selected[0][0].get("alias") != "value":
            raise ValueError(f"{where}: {shown(text)} is not a single SQL expression")
        return selected[0][0]

    def _walk(self, node: Any, where: str, bound: frozenset[str]) -> Iterator[str]:
        """Yield the columns read; raise for a shape or function that is not row-wise and repeatable."""
        if isinstance(node, list):
            for item in node:
                yield from self._walk(item, where, bound)
        if not isinstance(node, dict):
            return
        kind = node.get("class")
        if kind is not None and (kind not in _CLASSES or node.get("type") == "GROUPING_FUNCTION"):
            shape = str(node.get("type")).lower().replace("_", " ")
            raise ValueError(f"{where}: {shape} is not accepted here; write an expression over the columns of one row")
        if kind == "COLUMN_REF":
            if node["column_names"][0] not in bound:
                yield str(node["column_names"][0])
            return
        if kind == "FUNCTION" and str(node["function_name"]).lower() not in self._functions:
            raise ValueError(
                f"{where}: the function {node['function_name']!r} is unknown, or not one of the row-wise functions "
                "that give the same answer every time"
            )
        if kind == "LAMBDA":
            names = frozenset(_names(node["lhs"]))
            yield from self._walk(node["expr"], where, bound | names)
            return
        for value in node.values():
            yield from self._walk(value, where, bound)


@contextlib.contextmanager
def open_evaluator() -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a database without a folder, for an expression over some rows; it can reach no file."""
    with duckdb.connect(config={"threads": 1, "autoload_known_extensions": "false"}) as connection:
        connection.execute("SET enable_external_access = false")
        yield connection


def quoted(name: str) -> str:
    """Return `name` as a SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: float | None) -> str:
    """Return a number as SQL."""
    return "NULL::DOUBLE" if value is None else f"'{value!r}'::DOUBLE"


def text_literal(value: str) -> str:
    """Return a text as SQL."""
    return "'" + value.replace("'", "''") + "'"


def first_line(error: BaseException) -> str:
    """Return the first line of DuckDB's message."""
    return str(error).strip().splitlines()[0]


def without_locations(node: Any) -> Any:
    """Return a syntax tree without the places in the text."""
    if isinstance(node, dict):
        return {name: without_locations(value) for name, value in node.items() if not name.startswith("query_location")}
    return [without_locations(item) for item in node] if isinstance(node, list) else node


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (str(name) for name in node.get("column_names", ()))
        for value in node.values():
            yield from _names(value)
    elif isinstance(node, list):
        for item in node:
            yield from _names(item)


@cache
def _allowed_functions() -> frozenset[str]:
    with duckdb.connect() as connection:
        query = "SELECT lower(function_name), function_type, coalesce(stability, '') FROM duckdb_functions()"
        rows = connection.execute(query).fetchall()
    scalars = {name for name, kind, stability in rows if kind == "scalar" and stability == "CONSISTENT"}
    macros = {name for name, kind, _ in rows if kind == "macro" and _MACROS.match(name)}
    unstable = {name for name, kind, stability in rows if kind == "scalar" and stability != "CONSISTENT"}
    aggregates = {name for name, kind, _ in rows if kind in ("aggregate", "window")}
    return frozenset(
        name
        for name in (scalars | macros) - unstable - aggregates
        if not _REFUSED.match(name) and not _UNBOUNDED.match(name)
    )
