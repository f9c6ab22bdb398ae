"""One of N parts of any work: `--part 2/4` of a command, beside other processes that do the others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

MAX_PARTS = 100_000
_TEXT = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number`, from 1, of `of`."""

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of <= MAX_PARTS:
            raise ValueError(f"--part '{self}': expected I/N with I from 1 to N, N at most {MAX_PARTS}")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def mine(self, items: Sequence[T]) -> list[T]:
        """Return every Nth item, beginning with number I."""
        return list(items[self.number - 1 :: self.of])


def parse_part(text: str) -> Part:
    """Return the part that `I/N` names. Raises ValueError."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"--part {text!r}: expected I/N with I from 1 to N, as in --part 2/4")
    return Part(int(found[1]), int(found[2]))
