"""Promises of the nearest neighbours of one row: what a slow loop over all hashes finds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from headrace.curation.job import Job
from headrace.curation.ledger import (
    LEDGER_SCHEMA,
    Decision,
    LedgerSummary,
    ledger_named,
    read_decision,
    write_ledger,
    write_summary,
)
from headrace.curation.nearest import neighbours
from headrace.curation.select.evaluation import SCHEMA, VARIANTS
from headrace.curation.select.load import HASH_COLUMNS
from headrace.shards.parquet import parquet_bytes

ROWS_PER_SHARD = 40


@pytest.fixture
def decision(tmp_path: Path) -> tuple[Decision, dict[str, list[bytes | None]], dict[str, bool]]:
    """Two raw shards of random hashes, every third row dropped, every seventh without hashes."""
    rng = np.random.default_rng(7)
    job, hashes, kept = Job(str(tmp_path)), {}, {}
    ledger = []
    for shard in ("00000", "00001"):
        rows = []
        for number in range(ROWS_PER_SHARD):
            key = f"{shard}{number:04d}"
            uid = f"{shard}-{number}"
            hashes[uid] = [rng.bytes(32) if number % 7 else None for _ in HASH_COLUMNS]
            kept[uid] = number % 3 != 0
            rows.append({"key": key, **dict(zip(HASH_COLUMNS, hashes[uid], strict=True))})
            ledger.append({"uid": uid, "raw_shard": shard, "key": key, "kept": kept[uid]})
        schema = pa.schema([("key", pa.string()), *((name, pa.binary(32)) for name in HASH_COLUMNS)])
        folder = tmp_path / "annotations" / "hashes-1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{shard}.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=schema)))
    place = ledger_named(job, "f" * 64)
    sha256 = write_ledger(place, [pa.Table.from_pylist(ledger, schema=LEDGER_SCHEMA)])
    summary = LedgerSummary(
        digest="d", inputs="f" * 64, decided_by="r", ledger_sha256=sha256, rows=80, kept=53, out_shards=1,
        samples_per_shard=100, annotations={"hashes": "hashes-1"}, steps=[],
    )  # fmt: skip
    write_summary(place, summary)
    return read_decision(job, place), hashes, kept


def _distance(left: bytes, right: bytes) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("uid", ["00000-1", "00001-5", "00000-3"])
def test_the_nearest_kept_row_is_that_of_a_slow_loop(
    decision: tuple[Decision, dict[str, list[bytes | None]], dict[str, bool]], uid: str
) -> None:
    made, hashes, kept = decision
    shard, _, number = uid.partition("-")
    (found,) = neighbours(made, {"raw_shard": shard, "key": f"{shard}{int(number):04d}"})
    mine = [value for value in hashes[uid] if value is not None]
    expected = min(
        (_distance(one, other), name)
        for name, values in hashes.items()
        if name != uid and kept[name]
        for other in values
        if other is not None
        for one in mine
    )
    assert (found.kind, found.distance) == ("kept row", expected[0])
    assert min(_distance(one, other) for one in mine for other in hashes[found.name] if other) == found.distance


def test_a_row_without_hashes_has_no_neighbours(
    decision: tuple[Decision, dict[str, list[bytes | None]], dict[str, bool]],
) -> None:
    assert neighbours(decision[0], {"raw_shard": "00000", "key": "000000000"}) == []


def test_each_evaluation_set_names_its_nearest_image(
    decision: tuple[Decision, dict[str, list[bytes | None]], dict[str, bool]], tmp_path: Path
) -> None:
    made, hashes, _ = decision
    mine = hashes["00000-1"][0]
    assert mine is not None
    near = bytes([mine[0] ^ 0b101, *mine[1:]])
    rows = [
        {"name": "far.jpg", **{variant: bytes(32) for variant in VARIANTS}},
        {"name": "near.jpg", "full_flipped": near},
    ]
    folder = tmp_path / "ledger" / "evaluation" / "held-out"
    folder.mkdir(parents=True)
    (folder / "00000.parquet").write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema=SCHEMA)))
    first = neighbours(made, {"raw_shard": "00000", "key": "000000001"})[0]
    assert (first.kind, first.name, first.distance) == ("held-out", "near.jpg", 2)
