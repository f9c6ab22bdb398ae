"""What a step of select is: its settings, what it needs, and a function that writes `verdict`.

The stage, `why`, the report and the check before a run ask the step itself; none of them knows one kind of step from
another. A step finds its columns for the surviving rows in the table `here` and writes one row into `verdict` for every
row it drops. It never touches `rows`; what an earlier step dropped is not in `here`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import duckdb
import pyarrow as pa

from headrace.curation.select.database import Limits
from headrace.curation.select.evaluation import EvaluationSet
from headrace.curation.select.expression import Checker
from headrace.curation.select.load import HASH_COLUMNS, word_column

Links = Literal["none", "copies", "groups", "references"]
"""What `duplicate_of` of a dropped row is: nothing; the uid of a row with the same bytes; the uid of the best row of a
group whose pictures are worth comparing; an image outside the job."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A number of every row that a step compares with a threshold."""

    expression: str
    """Column or SQL expression."""
    threshold: float | None
    """None where nothing is compared, and the number is only recorded."""


@dataclass(frozen=True, slots=True)
class StepResult:
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
    evaluation: Mapping[str, pa.Table]
    """The hashes of each of the step's evaluation sets."""


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step ready to run."""

    columns: tuple[str, ...]
    """The columns it reads; a hash column brings its words along."""
    run: Callable[[Bench], StepResult]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Base of every step: the config that a recipe holds, and what the rest of curation asks of it.

    A step is one file with one subclass, and one line in the table `STEPS`, or in the extension of another package. Its
    docstring's first line is what `headrace steps` says. It redeclares `step` (a `Literal` with its tag) and `name`.
    """

    step: str
    """The tag of this step."""
    name: str
    """Name in the ledger and the funnel."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Python packages that it imports and that headrace alone does not bring."""
    links: ClassVar[Links] = "none"
    """What `duplicate_of` of the rows it drops is."""
    shows_dropped: ClassVar[bool] = True
    """False if no picture of what it dropped may be shown."""

    def unsafe_image_columns(self) -> tuple[str, ...]:
        """Return the columns by which it keeps the promise `unsafe_images: remove`; none if it does not."""
        return ()

    def needs_columns(self) -> tuple[str, ...]:
        """Return the columns that must be there, beside those that its SQL expressions name."""
        return ()

    def evaluation_sets(self) -> tuple[EvaluationSet, ...]:
        """Return the sets of images whose hashes it needs; they are looked for before any stage starts."""
        return ()

    def prepare(self, checker: Checker) -> ReadyStep:  # noqa: ARG002
        """Check the settings against the columns. Raises ValueError; no row is read yet.

        As it stands here, the step reads the columns it needs and calls `run`.
        """
        return ReadyStep(self.needs_columns(), self.run)

    def run(self, bench: Bench) -> StepResult:
        """Write `verdict`."""
        raise NotImplementedError(f"step {self.step!r} has neither run() nor a prepare() of its own")

    def cuts(self, learned: float | None) -> tuple[Cut, ...]:  # noqa: ARG002
        """Return what it compares for each row; `learned` is the threshold that its result had."""
        return ()

    def may_show(self, facts: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """True if the step knows nothing against showing the picture of a row with these columns."""
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class UnknownStep(Step):
    """A step of a ledger whose kind, or whose settings, this installation does not know: no picture is shown."""

    shows_dropped: ClassVar[bool] = False

    def may_show(self, facts: Mapping[str, Any]) -> bool:  # noqa: ARG002
        return False


def take_captions(bench: Bench, query: str) -> None:
    """Let rows that are kept take the captions of others; `query` gives `__row`, `source`.

    The summary's details say how many did, as `captions_taken`.
    """
    bench.connection.execute(f"CREATE TABLE captions_taken AS {query}")


def write_verdict(bench: Bench, query: str) -> None:
    """Create `verdict` from a query for __row, reason, value, threshold, duplicate_of of the rows to drop."""
    bench.connection.execute(f"CREATE TABLE verdict AS {query}")


def stored_columns(columns: Sequence[str]) -> list[str]:
    """Return the columns of `rows` that hold `columns`."""
    words = [word_column(name, word) for name in columns if name in HASH_COLUMNS for word in range(4)]
    return list(dict.fromkeys([*columns, *words]))
