"""What a run saw: one digest a step, and the proof that it is what the order says.

A digest is the sum over the global batch of a hash of (position, source, key), so it is the same however the batch was
dealt to ranks. `samples.jsonl` has lines of consecutive steps; each step stands there once, however often the run was
killed: on resume lines behind the checkpoint are cut, as those steps are done again.
"""

import contextlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.appended import AppendedFile
from headrace.atomic import write_atomic
from headrace.pipeline.batch import Batch
from headrace.pipeline.catalog import OpenedSource
from headrace.pipeline.order.plan import EndlessPlan
from headrace.shards.permutation import make_key, mix_keys

IntArray = NDArray[np.int64]

FILE = "samples.jsonl"
SAMPLES_AT_ONCE = 1 << 18
"""The more samples are looked up together, the fewer indexes are read twice."""
KEY = make_key("seen")


def row_hashes(position: IntArray, source: IntArray, keys: Iterable[str]) -> NDArray[np.uint64]:
    """Return 64 bits for each row of a batch."""
    names = np.fromiter((zlib.crc32(key.encode()) for key in keys), np.int64, len(position))
    return mix_keys(mix_keys(mix_keys(KEY, position), source), names)


def digest_of(hashes: NDArray[np.uint64]) -> tuple[int, int]:
    """Return the sums of the upper and of the lower halves: exact as float64 for batches up to 2 million."""
    return int((hashes >> np.uint64(32)).sum()), int((hashes & np.uint64(0xFFFFFFFF)).sum())


class StepRecord:
    """Keeps a digest a step, and appends lines to `samples.jsonl`; ranks other than 0 give no path and hold no file."""

    def __init__(self, path: Path | None, *, global_batch: int, step: int, patient: bool = False) -> None:
        self._global_batch = global_batch
        self._step = step
        self._sums: list[tuple[int, int, int]] = []
        self._file: AppendedFile | None = None
        if path is not None:
            lines = [line for line in read_record(path) if line["step"] <= step]
            write_atomic(str(path), "".join(json.dumps(line) + "\n" for line in lines).encode())
            self._file = AppendedFile(path, patient=patient)

    def add(self, batch: Batch) -> None:
        """Count the batch of one step."""
        hashes = row_hashes(batch.position, batch.source.astype(np.int64), batch.key)
        self._sums.append((*digest_of(hashes), batch.num_replaced))

    def flush(self, total: Callable[[Sequence[float]], Sequence[float]]) -> None:
        """Write the steps since the last flush; `total` sums numbers over ranks, and is called on all of them."""
        if not self._sums:
            return
        sums = [int(value) for value in total([value for step in self._sums for value in step])]
        line: dict[str, Any] = {
            "first_step": self._step + 1,
            "step": self._step + len(self._sums),
            "global_batch": self._global_batch,
            "digests": [text_of(*pair) for pair in zip(sums[::3], sums[1::3], strict=True)],
        }
        if any(sums[2::3]):
            line["replaced"] = sums[2::3]
        self._step, self._sums = line["step"], []
        if self._file is not None:
            self._file.append(json.dumps(line) + "\n")

    def retry(self) -> None:
        """Write what a full disk kept from being written."""
        if self._file is not None:
            self._file.append("")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def read_record(path: Path) -> list[dict[str, Any]]:
    """Return the lines of `samples.jsonl`; one that a killed process left unfinished is not one."""
    return [line for line in _json_lines(path) if _is_line(line)]


def last_trained_step(metrics: Path) -> int:
    """Return the last step that the `metrics.jsonl` of a run tells of; 0 = it tells of none."""
    return max((line["step"] for line in _events(metrics, "train")), default=0)


def skipped_steps(metrics: Path) -> dict[int, str]:
    """Return the steps that did not move the weights, by the `metrics.jsonl` of a run, and why: step -> reason."""
    return {line["step"]: str(line.get("reason", "")) for line in _events(metrics, "skipped")}


def _events(metrics: Path, event: str) -> Iterator[dict[str, Any]]:
    for line in _json_lines(metrics):
        if isinstance(line, dict) and line.get("event") == event and isinstance(line.get("step"), int):
            yield line


def _json_lines(path: Path) -> Iterator[Any]:
    """Yield what lies in the whole lines of a file; a file that is not there has none."""
    with contextlib.suppress(FileNotFoundError):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError, RecursionError):
                yield json.loads(text)


def _is_line(line: Any) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("digests"), list):
        return False
    replaced = line.get("replaced", line["digests"])
    if not isinstance(replaced, list) or len(replaced) != len(line["digests"]):
        return False
    numbers = [line.get(name) for name in ("first_step", "step", "global_batch")]
    if any(not isinstance(number, int) or number < 1 for number in numbers):
        return False
    return bool(line["step"] - line["first_step"] + 1 == len(line["digests"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What became of each step of a record."""

    num_steps: int
    """Steps up to the last that was recorded."""
    num_samples: int
    """Samples of the steps whose digest is that of the order."""
    num_replaced: int
    """Those of them that stand for a damaged sample, as the quarantine file says."""
    not_recorded: tuple[int, ...]
    """Steps without a line."""
    recorded_twice: tuple[int, ...]
    """Steps in two lines: done twice, and the first time was not undone."""
    not_proven: tuple[int, ...]
    """Steps with replaced samples of which no quarantine file tells, or of more than there were."""
    differs: int | None
    """The first step that saw other samples than the order says; None = none did."""

    @property
    def holds(self) -> bool:
        """True if every step is proven to be as planned."""
        return self.differs is None and not (self.not_recorded or self.recorded_twice or self.not_proven)


def prove(
    plan: EndlessPlan,
    sources: Sequence[OpenedSource],
    lines: Sequence[dict[str, Any]],
    *,
    replaced: dict[int, str],
    last_step: int = 0,
) -> Proof:
    """Compare a record with the order. `replaced` says which key was given at a position whose sample was damaged.

    `last_step` is the last that the run is known to have done: the record may have lost its end.
    """
    steps = {step: entry for line in lines for step, entry in _entries(line)}
    counts = np.bincount([step for line in lines for step, _ in _entries(line)], minlength=last_step + 1)
    given = known = 0
    unproven: list[int] = []
    differs = None
    for step, hashes, changed in _planned(plan, sources, steps, replaced):
        digest, num_replaced = steps[step]
        if text_of(*digest_of(hashes)) == digest:
            given, known = given + len(hashes), known + changed
        elif num_replaced != changed:
            unproven.append(step)
        else:
            differs = step
            break
    return Proof(
        num_steps=max(steps, default=0),
        num_samples=given,
        num_replaced=known,
        not_recorded=tuple(int(step) for step in np.flatnonzero(counts[1:] == 0) + 1),
        recorded_twice=tuple(int(step) for step in np.flatnonzero(counts[1:] > 1) + 1),
        not_proven=tuple(unproven),
        differs=differs,
    )


def text_of(high: int, low: int) -> str:
    """Return a digest as it stands in `samples.jsonl`."""
    return f"{high:x}-{low:x}"


def _entries(line: dict[str, Any]) -> Iterator[tuple[int, tuple[str, int]]]:
    replaced = line.get("replaced") or [0] * len(line["digests"])
    yield from enumerate(zip(line["digests"], replaced, strict=True), line["first_step"])


def _planned(
    plan: EndlessPlan, sources: Sequence[OpenedSource], steps: dict[int, tuple[str, int]], replaced: dict[int, str]
) -> Iterator[tuple[int, NDArray[np.uint64], int]]:
    """Yield (step, hash of each row, rows that were replaced) as the order and the quarantine files have it."""
    waiting, size = sorted(steps), plan.global_batch
    while waiting:
        first = waiting[0]
        run = next((n for n, step in enumerate(waiting) if step != first + n), len(waiting))
        batches = plan.batches(first - 1, min(run, max(1, SAMPLES_AT_ONCE // size)))
        placed = [batch.placed for batch in batches]
        source = np.concatenate([one.source for one in placed])
        keys = _keys(sources, source, np.concatenate([one.sample for one in placed]))
        position = (first - 1) * size + np.arange(len(keys), dtype=np.int64)
        changed = np.zeros(len(keys), np.bool_)
        for row, place in enumerate(position.tolist()):
            # A fault of the way that did not come again after a restart left its line, and replaced nothing.
            if place in replaced and steps[place // size + 1][1]:
                keys[row], changed[row] = replaced[place], True
        hashes = row_hashes(position, source, keys)
        for number in range(len(batches)):
            rows = slice(number * size, (number + 1) * size)
            yield first + number, hashes[rows], int(changed[rows].sum())
        del waiting[: len(batches)]


def _keys(sources: Sequence[OpenedSource], source: IntArray, sample: IntArray) -> list[str]:
    keys = np.empty(len(sample), object)
    for number, opened in enumerate(sources):
        mine = np.flatnonzero(source == number)
        shard, row = opened.locate(sample[mine])
        by_shard = np.argsort(shard, kind="stable")
        for some in np.split(by_shard, np.flatnonzero(np.diff(shard[by_shard])) + 1) if mine.size else ():
            distinct, where = np.unique(row[some], return_inverse=True)
            column = opened.rows(int(shard[some[0]]), distinct).key.to_pylist()
            keys[mine[some]] = [str(column[number]) for number in where.tolist()]
    return list(keys)


def read_replaced(quarantine: str) -> dict[int, str]:
    """Return which key was given at each position whose sample was damaged, from the quarantine files of all ranks."""
    found: dict[int, str] = {}
    path = Path(quarantine)
    for file in (path, *sorted(path.parent.glob(f"{path.name}.*"))) if quarantine else ():
        with contextlib.suppress(FileNotFoundError):
            for text in file.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                    line = json.loads(text)
                    found[int(line["position"])] = str(line["replaced_by"])
    return found
