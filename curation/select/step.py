"""What a step of select is: its settings, what it needs, and a function that writes `verdict`.

The stage, `why`, the report and the check before a run ask the step itself; none of them knows one kind of step from
another. A step finds its columns for the surviving rows in the table `here` and writes one row into `verdict` for every
row it drops. It never touches `rows`; what an earlier step dropped is not in `here`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import duckdb
import pyarrow as pa

from headrace.config import config_to_dict
from headrace.curation.select.database import Limits, work_folder
from headrace.curation.select.evaluation import EvaluationSet
from headrace.curation.select.evaluation_facts import Fact
from headrace.curation.select.expression import Checker
from headrace.curation.select.hamming import WORDS
from headrace.curation.select.here import PartedHere
from headrace.curation.select.kept import Kept
from headrace.curation.select.load import WORD_COLUMNS, word_column
from headrace.shards.units import INLINE, EngineConfig

VERDICT_SCHEMA = pa.schema(
    [
        ("__row", pa.int64()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("duplicate_of", pa.string()),
    ]
)
"""Of the table `verdict`."""

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
    """The hashes of each of the step's evaluation sets, and the facts that it asks for."""
    engine: EngineConfig = INLINE
    """Where units of work that share the work folder may run."""
    kept: Kept | None = None
    """Where results of expensive work are kept for the next run; None: nowhere."""
    parts: PartedHere | None = None
    """`here` in parts, for units of work; None: there is `here` alone."""

    @property
    def folder(self) -> Path:
        """A local folder for files of the step's work; it is removed after the run."""
        return work_folder(self.connection)


@dataclass(frozen=True, slots=True)
class ReadyStep:
    """A step ready to run."""

    columns: tuple[str, ...]
    """The columns it reads; a hash column brings its words along, which a step may also name alone."""
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

    each_row: ClassVar[bool] = False
    """True if its verdict on a row follows from that row alone. Such steps at the start of a selection run on parts of
    the rows, each in a process of its own: their `StepResult` must be the same for every part."""
    names_dropped: ClassVar[bool] = True
    """False if the ledger may not say what it dropped: neither the URL nor a uid that follows from it."""

    summary_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that change what `measured_now` says in the summary, and no verdict."""

    measured: ClassVar[str] = "distance"
    """What the value of a dropped row is, in a word: `distance` (of PDQ), `cosine`, `similarity`."""

    def needed_packages(self) -> tuple[str, ...]:
        """Return the packages that this one, with its settings, imports."""
        return self.packages

    def unsafe_image_columns(self) -> tuple[str, ...]:
        """Return the columns by which it keeps the promise `unsafe_images: remove`; none if it does not."""
        return ()

    def needs_columns(self) -> tuple[str, ...]:
        """Return the columns that must be there, beside those that its SQL expressions name."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain data, as the summary of a ledger and the card of a dataset tell them."""
        return config_to_dict(self)

    def decides_by(self) -> dict[str, Any]:
        """Return the settings as plain data, for the digests that ledgers are named and looked up by.

        A setting that a later headrace adds must not change it where it means what was meant before.
        """
        return self.settings()

    def merges_captions(self) -> bool:
        """True if rows that it keeps may hold several captions: the ledger then has columns for them."""
        return False

    def judges_captions(self) -> bool:
        """True if it keeps captions of a kind out: behind a step that merges it would see each row's first alone."""
        return False

    def version(self, num_rows: int) -> int:  # noqa: ARG002
        """Return the version of how it decides on a job of so many rows: over 1 where 1 gave other verdicts."""
        return 1

    def evaluation_sets(self) -> tuple[EvaluationSet, ...]:
        """Return the sets of images whose hashes it needs; they are looked for before any stage starts."""
        return ()

    def evaluation_facts(self) -> tuple[Fact, ...]:
        """Return what it needs of their images beside the hashes."""
        return ()

    def read_digests(self) -> tuple[str, ...]:
        """Return a sum of every file beside the tables that its verdicts follow from. Raises ValueError for damage."""
        return ()

    def counts_on(self) -> tuple[str, ...]:
        """Return the annotators that must be made by certain settings or models: `check_annotations` looks at these."""
        return ()

    def check_annotations(self, annotations: Mapping[str, str]) -> None:
        """Raise ValueError where another annotator than the step counts on made, or will make, a column.

        `annotations`: annotator -> folder of its tables, whose name ends in the beginning of its digest. Asked before
        any stage starts, and before any row is read.
        """

    def measured_now(self, evaluation: Mapping[str, pa.Table], columns: Sequence[str]) -> dict[str, Any]:  # noqa: ARG002
        """Return what the summary says beside the verdicts, as `measured`; no row is needed for it.

        `evaluation`: the tables of its evaluation sets, with the facts it asks for; `columns`: those of the rows.
        """
        return {}

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


def word_columns(hashes: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of the words of hashes: for a step that needs no more of them."""
    return tuple(word_column(name, word) for name in hashes for word in range(WORDS))


def read_column(column: str) -> str:
    """Return the column of the tables that a column of `rows` is made of."""
    return _READ.get(column, column)


_READ = {word: name for name in WORD_COLUMNS for word in word_columns((name,))}


def stored_columns(columns: Sequence[str]) -> list[str]:
    """Return the columns of `rows` that hold `columns`."""
    words = word_columns([name for name in columns if name in WORD_COLUMNS])
    return list(dict.fromkeys([*columns, *words]))
