"""One trunk on several datasets: a table with the mean over them.

Each dataset is a probe of its own, with its result in a file of its own as soon as it is there. A suite that is started
again does what is not finished, or what was asked otherwise. A dataset that fails has its reason in its row, and the
others go on. Of several processes that is so for what the indexes say; a probe that fails on one of them ends all.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headrace import files
from headrace.atomic import write_atomic
from headrace.config import build_config, canonical_json
from headrace.shards.dataset import open_dataset
from headrace.strict_yaml import read_mapping
from headrace.text import one_line, printable
from headrace.train.evaluate.probe_config import ProbeConfig, protocol
from headrace.train.evaluate.probes import probe, probe_kind, probe_labels
from headrace.train.evaluate.trunk import open_trunk
from headrace.train.parallel.ranks import Ranks, join_ranks

TABLE = "suite"
OWN_FIELDS = ("train", "test", "untrained")
# They change no result but by rounding, and by the order of samples where memory_bytes decides where features are.
FREE_FIELDS = ("memory_bytes", "images_per_forward")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteDataset:
    """One row of the table."""

    name: str
    """Letters, digits, `.`, `_` and `-`: the name of its file too."""
    train: str
    """URL of a labelled dataset to fit on."""
    test: str
    """URL of a labelled dataset to judge on."""
    head: str = ""
    """attentive, linear, ...; '' = as for all."""
    metric: str = ""
    """top1 or mean_per_class; '' = as for all."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Other fields of a probe that differ here: epochs, lrs, ground_truth, ..."""

    def __post_init__(self) -> None:
        if not self.name or not all(letter.isalnum() or letter in "._-" for letter in self.name) or self.name[0] == ".":
            raise ValueError(f"name {self.name!r}: expected letters, digits, '.', '_' and '-', not a dot first")
        if self.name == TABLE:
            raise ValueError(f"name {self.name!r} is that of the table's own file; take another")
        _refuse_own(self.overrides)


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteConfig:
    """Several datasets, and how a trunk is probed on them."""

    datasets: tuple[SuiteDataset, ...]
    """In the order of the table."""
    protocol: str = "quick"
    """Settings that all begin with: a name such as quick, aim or moco_v3."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of a probe that differ from the protocol, for all datasets."""

    def __post_init__(self) -> None:
        names = [dataset.name for dataset in self.datasets]
        if not names:
            raise ValueError("datasets is empty")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two datasets have the name {twice[0]!r}")
        _refuse_own(self.overrides)
        for dataset in self.datasets:
            self.probe_of(dataset)

    def probe_of(self, dataset: SuiteDataset, *, untrained: bool = False) -> ProbeConfig:
        """Return how the trunk is probed on one of the datasets. Raises ValueError naming it for what cannot be."""
        fields = protocol(self.protocol) | self.overrides | dataset.overrides
        own: dict[str, Any] = {"train": dataset.train, "test": dataset.test, "untrained": untrained}
        own |= {name: value for name in ("head", "metric") if (value := getattr(dataset, name))}
        try:
            config = build_config(ProbeConfig, fields | own)
            probe_kind(config.head)
        except ValueError as error:
            raise ValueError(f"dataset {dataset.name}: {error}") from error
        return config


def load_suite(path: Path) -> SuiteConfig:
    """Read a suite file. Raises ValueError naming the file and the key that is wrong."""
    try:
        return build_config(SuiteConfig, read_mapping(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteRow:
    """What became of one dataset."""

    name: str
    metric: str
    head: str
    accuracy: float | None
    """None = it failed."""
    error: str = ""
    """Why it failed, in one line."""
    kept: bool = False
    """True if it was finished before."""


def run_suite(
    checkpoint: Path,
    suite: SuiteConfig,
    out: Path,
    *,
    untrained: bool = False,
    device: str = "auto",
    on_row: Callable[[SuiteRow], None] = lambda _: None,
) -> list[SuiteRow]:
    """Probe the trunk of `checkpoint` on every dataset; results and the table go into the folder `out`.

    Called on all ranks. `on_row` is told each row as soon as it is there.
    """
    trunk = open_trunk(checkpoint, untrained=untrained)
    digest = trunk.digest()
    del trunk
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    # Once for all datasets: what joins anew may read where the others listened before, and wait for ever.
    with join_ranks(device) as ranks:
        for dataset in suite.datasets:
            config = suite.probe_of(dataset, untrained=untrained)
            row = _row(checkpoint, dataset, config, out, trunk=digest, ranks=ranks)
            rows.append(row)
            on_row(row)
    return rows


def write_tables(out: Path, rows: list[SuiteRow], facts: Mapping[str, Any]) -> None:
    """Write `suite.json` and `suite.md`."""
    table = {**facts, "mean": mean_of(rows), "rows": [asdict(row) for row in rows]}
    write_atomic(str(out / f"{TABLE}.json"), f"{json.dumps(table, indent=1, allow_nan=False)}\n".encode())
    write_atomic(str(out / f"{TABLE}.md"), markdown(rows).encode())


def mean_of(rows: list[SuiteRow]) -> float | None:
    """Return the mean over the datasets that have an accuracy; None where none has."""
    known = [row.accuracy for row in rows if row.accuracy is not None]
    return round(sum(known) / len(known), 6) if known else None


def markdown(rows: list[SuiteRow]) -> str:
    """Return the table. The mean says over how many it is, where some failed."""
    lines = ["| dataset | metric | head | accuracy |", "| --- | --- | --- | --- |"]
    for row in rows:
        told = f"failed: {printable(row.error)}".replace("|", "\\|") if row.accuracy is None else f"{row.accuracy:.4f}"
        lines.append(f"| {row.name} | {row.metric} | {row.head} | {told} |")
    mean, num_known = mean_of(rows), sum(row.accuracy is not None for row in rows)
    over = f"{num_known} of {len(rows)}" if num_known < len(rows) else f"{num_known}"
    lines.append(f"| **mean over {over}** | | | {'' if mean is None else f'**{mean:.4f}**'} |")
    return "\n".join(lines) + "\n"


def _row(
    checkpoint: Path, dataset: SuiteDataset, config: ProbeConfig, out: Path, *, trunk: str, ranks: Ranks
) -> SuiteRow:
    row = SuiteRow(name=dataset.name, metric=config.metric, head=config.head, accuracy=None)
    path, digest, kept, reason = out / f"{dataset.name}.json", "", None, ""
    try:
        digest = _digest(config, trunk)
        kept = _finished(path, digest)
        if kept is None:
            probe_labels(config)
    except (ValueError, OSError) as error:
        reason = _reason(error)
    # All take the same branch: what one cannot read, none of them probes.
    reason = next((text for text in ranks.gathered(reason, "the datasets of a suite") if text), "")
    if reason:
        return _failed(row, reason)
    if ranks.sum([kept is not None], "what is finished")[0] == ranks.size:
        return dataclasses.replace(row, accuracy=kept, kept=True)
    try:
        result = probe(checkpoint, config, work=out, ranks=ranks)
        if ranks.is_first:
            text = json.dumps({"digest": digest, **result}, indent=1, allow_nan=False)
            write_atomic(str(path), f"{text}\n".encode())
    except (ValueError, OSError) as error:
        if ranks.size > 1:
            # The others may be in the midst of it: they would take this rank's next dataset for the same one.
            error.add_note(f"in dataset {dataset.name} of the suite; the same command goes on")
            raise
        return _failed(row, _reason(error))
    return dataclasses.replace(row, accuracy=float(result["accuracy"]))


def _reason(error: Exception) -> str:
    return one_line(str(error)) or type(error).__name__


def _failed(row: SuiteRow, reason: str) -> SuiteRow:
    log.info("%s: %s", row.name, reason)  # whoever shows the rows tells it
    return dataclasses.replace(row, error=reason)


def _digest(config: ProbeConfig, trunk: str) -> str:
    """Return what differs as soon as another result is asked for: of the weights, the settings or the data."""
    data = [open_dataset(url).shards.digest() for url in (config.train, config.test)]
    truths = [
        hashlib.sha256(files.read_bytes(path)).hexdigest()
        for path in (config.ground_truth, config.class_subset)
        if path
    ]
    settings = {name: value for name, value in config.told.items() if name not in FREE_FIELDS}
    text = canonical_json([trunk, settings, data, truths])
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(path: Path, digest: str) -> float | None:
    """Return the accuracy in a result that was made for the same; None if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("digest") == digest
    return float(found["accuracy"]) if same else None


def _refuse_own(overrides: Mapping[str, Any]) -> None:
    for name in OWN_FIELDS:
        if name in overrides:
            raise ValueError(f"overrides.{name}: not an override; give train and test of the dataset, --untrained")
