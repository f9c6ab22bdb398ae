"""Types of the carried columns of a text list, found while it is read."""

from typing import Any

import pyarrow as pa

from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists.label import LABEL
from headrace.curation.fetch.lists.rows import Block

FLOAT_EXACT = 1 << 53


class CarriedKinds:
    """The types of the values seen so far."""

    def __init__(self, config: InputConfig) -> None:
        self._kinds: dict[str, set[str]] = {name: set() for name in config.columns}

    def add(self, block: Block) -> None:
        """Look at the values of one more block."""
        for (name, found), values in zip(self._kinds.items(), block.carried, strict=False):
            found |= {"int64"} if name == LABEL else _kinds(values)

    @property
    def schema(self) -> pa.Schema:
        """The columns of which values were seen."""
        return pa.schema([(name, _arrow_type(found)) for name, found in self._kinds.items() if found])


def _kinds(values: list[Any]) -> set[str]:
    kinds = {kind.__name__ for kind in set(map(type, values))} - {"NoneType"}
    if "int" in kinds:
        numbers = [value for value in values if type(value) is int]
        if max(map(abs, numbers)) > FLOAT_EXACT:
            # A float would not hold it; nor would int64, at the end.
            kinds.add("int64" if max(numbers) < 1 << 63 and min(numbers) >= -(1 << 63) else "other")
    return kinds


def _arrow_type(kinds: set[str]) -> pa.DataType:
    if kinds == {"bool"}:
        return pa.bool_()
    if kinds <= {"int", "int64"}:
        return pa.int64()
    return pa.float64() if kinds <= {"int", "float"} else pa.string()
