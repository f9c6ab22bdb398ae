"""A function of the user's, called for every sample once its pictures are made, in the thread that made them.

It gets a generator of its own for each position, so what it gives is a function of (seed, position, sample): the same
for any threads, ranks, and after any restart, as long as the function itself has no state.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.pipeline.collate import MISSING, Column, Kind
from headrace.pipeline.errors import SampleError
from headrace.shards.permutation import make_key
from headrace.text import one_line, shown

MISSING_MAPPED = {**MISSING, "u": 0, "c": np.nan, "M": np.datetime64("NaT", "s"), "m": np.timedelta64("NaT", "s")}
"""By the kind of a numpy dtype; what has another kind is delivered as a list."""

PLAIN = (np.dtype(np.bool_), np.dtype(np.int64), np.dtype(np.float64))
"""What Python's own numbers are; they may stand beside each other in one column."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, as a map function gets it."""

    key: str
    position: int
    """Global position, as in `Batch.position`."""
    source: str
    """Name of the source."""
    columns: Mapping[str, Any]
    """The columns asked for: Python values, arrays for fixed-size lists, None for what is missing."""
    views: tuple[NDArray[np.uint8], ...] = ()
    """Every view, uint8 [S, S, 3]: the batch's own memory, so what is written here is delivered. Empty without pixels:
    with `decoder: none`, and where a stream decodes onto another device."""
    upright_size: tuple[int, int] = (0, 0)
    """Height and width of the whole picture as one sees it, in pixels; zeros = not known."""
    data: bytes = b""
    """The image as it lies in the shard, with `decoder: none`; else empty."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """The first view. Raises ValueError where the stream has no pixels in this machine's memory."""
        if not self.views:
            raise ValueError(
                "a sample has no pixels here: with decoder: none its image is in `data`; a stream that decodes onto a "
                "GPU shows a map the columns only, open it with device='cpu' for pixels"
            )
        return self.views[0]


MapFunction: TypeAlias = Callable[[Sample, np.random.Generator], Mapping[str, Any] | None]
"""Returns columns of the batch by name, or None. Called by several threads at once, ahead of what is delivered."""


class Mapper:
    """A map function, and what is known of the columns that it gives."""

    def __init__(self, function: MapFunction, seed: int) -> None:
        if not callable(function):
            raise ValueError(f"map is a function of (sample, rng), got {shown(function)}")
        self.name = _name_of(function)
        self.kinds: dict[str, Kind] = {}
        """Of each column the first value that was given: what a batch of nothing but padding goes by."""
        self._function = function
        self._key = make_key(seed, "map")

    def rng(self, position: int) -> np.random.Generator:
        """Return the generator of a position: Philox, with 2**64 blocks for each."""
        return np.random.Generator(np.random.Philox(key=self._key, counter=position << 64))

    def __call__(self, sample: Sample, shard: str) -> Mapping[str, Any]:
        """Return what the function gives of a sample, its numbers as arrays.

        Raises SampleError where the function does, and ValueError naming function and sample for any other fault of it.
        """
        try:
            found = self._function(sample, self.rng(sample.position))
            columns = _checked(found)
        except SampleError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {one_line(str(error))}"
            where = f"sample {shown(sample.key)} at position {sample.position} of source {shown(sample.source)}"
            raise ValueError(f"map {self.name}: {what}; {where}, {one_line(shard)}") from error
        for name, value in columns.items():
            if name not in self.kinds and value is not None:
                self.kinds[name] = _kind_of(value)
        return columns

    def collate(self, rows: Sequence[Mapping[str, Any] | None], keys: Sequence[str]) -> dict[str, Column]:
        """Return the columns of a batch from what each row gave, None for padding.

        Raises ValueError, naming function and samples, if they do not go together.
        """
        first = next((row for row, given in enumerate(rows) if given is not None), None)
        if first is None:
            return {name: _without_value(kind, len(rows)) for name, kind in self.kinds.items()}
        head = rows[first]
        assert head is not None
        for row, given in enumerate(rows):
            if given is not None and given.keys() != head.keys():
                raise ValueError(
                    f"map {self.name} gave {_names(head)} for sample {shown(keys[first])} and {_names(given)} for "
                    f"sample {shown(keys[row])}: give the same columns for every sample, None for what is missing"
                )
        return {name: self._column(name, rows, keys) for name in head}

    def _column(self, name: str, rows: Sequence[Mapping[str, Any] | None], keys: Sequence[str]) -> Column:
        values: list[Any] = [None if given is None else given[name] for given in rows]
        there = [row for row, value in enumerate(values) if value is not None]
        if not there or not all(isinstance(values[row], np.ndarray) for row in there):
            return [value.item() if isinstance(value, np.ndarray) and not value.shape else value for value in values]
        first = values[there[0]]
        for row, value in enumerate(values):
            if rows[row] is None or (value is None and not first.shape):
                continue
            if value is None or not _go_together(value, first):
                raise ValueError(
                    f"map {self.name} gave for column {name} {_describe(first)} for sample {shown(keys[there[0]])} and "
                    f"{_describe(value)} for sample {shown(keys[row])}: arrays of one column have one type and shape; "
                    "pad them, or return lists where sizes differ"
                )
        dtype = np.result_type(*{values[row].dtype for row in there})
        column: Column = _without_value(Kind("", dtype, first.shape), len(values))
        for row in there:
            column[row] = values[row]
        return column


def _name_of(function: object) -> str:
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return one_line(f"{module}.{name}" if module and module != "__main__" else str(name))


def _checked(found: object) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise TypeError(f"it returned {shown(found)}; expected a mapping of columns by name, or None")
    for name in found:
        if not isinstance(name, str):
            raise TypeError(f"it named a column {shown(name)}; names are texts")
    return {name: _number(name, value) for name, value in found.items()}


def _number(name: str, value: Any) -> Any:
    """Return numbers and arrays as arrays of our own, as the caller may use his again; other values as they are."""
    if isinstance(value, bool | int | float):
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise ValueError(f"column {name}: {value} has over 64 bits; return a text, or numpy.uint64")
        dtype = np.bool_ if isinstance(value, bool) else np.int64 if isinstance(value, int) else np.float64
        return np.array(value, dtype)
    if hasattr(value, "__array__"):  # numpy's, and PyTorch's on the CPU
        array = np.asarray(value).copy()
        return array if array.dtype.kind in MISSING_MAPPED else value
    return value


def _kind_of(value: Any) -> Kind:
    return Kind("", value.dtype, value.shape) if isinstance(value, np.ndarray) else Kind("list")


def _go_together(one: NDArray[Any], other: NDArray[Any]) -> bool:
    dtypes = {one.dtype, other.dtype}
    return one.shape == other.shape and (len(dtypes) == 1 or (not one.shape and dtypes.issubset(PLAIN)))


def _without_value(kind: Kind, num_rows: int) -> Any:
    """Return a column without a value. Arrays are zeros there, as padding too may go through a model."""
    if kind.dtype is None:
        return [None] * num_rows
    return np.full((num_rows, *kind.shape), 0 if kind.shape else MISSING_MAPPED[kind.dtype.kind], kind.dtype)


def _describe(value: Any) -> str:
    return f"{value.dtype.name}{list(value.shape)}" if isinstance(value, np.ndarray) else "None"


def _names(columns: Mapping[str, Any]) -> str:
    return ", ".join(sorted(columns)) or "nothing"
