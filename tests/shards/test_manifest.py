"""The manifest in columns: shards come on demand, the state's digest is as it was, and 200,000 of them open at once."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.shards.manifest import FOREIGN_LAYOUT, MANIFEST_SCHEMA, OWN_LAYOUT, ShardEntry, Shards, parse_manifest
from headrace.shards.parquet import parquet_bytes
from headrace.shards.write import write_manifest

SUM = hashlib.sha256(b"").hexdigest()

NAMES = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=("Cs",)), min_size=1).filter(
    lambda name: not name.startswith(".")
)
ENTRIES = st.lists(
    st.builds(
        ShardEntry,
        name=NAMES,
        num_samples=st.integers(0, 10_000),
        num_bytes=st.integers(0, 1 << 40),
        sha256=st.sampled_from([None, SUM]),
        index_sha256=st.just(SUM),
    ),
    unique_by=lambda entry: entry.name,
    max_size=8,
)


def table_of(entries: list[ShardEntry]) -> pa.Table:
    rows = [{name: getattr(entry, name) for name in MANIFEST_SCHEMA.names} for entry in entries]
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


@given(ENTRIES)
def test_a_manifest_gives_back_the_entries_that_were_written(entries: list[ShardEntry]) -> None:
    data = parquet_bytes(table_of(entries))
    totals = [sum(entry.num_samples for entry in entries), sum(entry.num_bytes for entry in entries)]
    summary = {"schema": 1, "num_shards": len(entries), "num_samples": totals[0], "num_bytes": totals[1]}
    shards = parse_manifest(data, "m", summary, FOREIGN_LAYOUT)
    assert list(shards) == [shards[number] for number in range(len(shards))] == entries
    assert shards[-2:] == tuple(entries[-2:])
    assert [int(shards.num_samples.sum()), int(shards.num_bytes.sum())] == totals
    assert shards.lack_sums == any(entry.sha256 is None for entry in entries)
    assert shards == Shards(table_of(entries))
    assert hash(shards) == hash(Shards(table_of(entries)))


@given(ENTRIES)
def test_the_digest_of_old_states_is_kept(entries: list[ShardEntry]) -> None:
    text = "\n".join(f"{entry.name} {entry.num_samples} {entry.sha256}" for entry in entries)
    assert Shards(table_of(entries)).digest() == hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def test_a_shard_that_is_not_there_is_an_index_error() -> None:
    shards = Shards(table_of([ShardEntry("a", 1, 2, SUM, SUM)]))
    assert shards[-1] == shards[0]
    for number in (1, -2):
        with pytest.raises(IndexError, match=f"no shard {number} of 1"):
            shards[number]


PROGRAM = """
import json, resource, sys
from headrace.shards.dataset import open_dataset

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

open_dataset(sys.argv[2]).shards.digest()
before, used = peak(), cpu()
dataset = open_dataset(sys.argv[1])
assert len(dataset.shards.digest()) == 16
assert "pandas" not in sys.modules, "60 MB that nobody wants"
print(json.dumps([len(dataset.shards), peak() - before, cpu() - used]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_hundred_thousand_shards_open_in_two_seconds_and_little_memory(tmp_path: Path) -> None:
    for folder, count in (("large", 200_000), ("small", 1)):
        rows = [
            {
                "name": f"{number:08d}",
                "num_samples": 10_000,
                "num_bytes": 1 << 30,
                "sha256": digest,
                "index_sha256": digest,
            }
            for number, digest in ((n, hashlib.sha256(str(n).encode()).hexdigest()) for n in range(count))
        ]
        write_manifest(str(tmp_path / folder), rows, {"recipe_digest": "made", "layout": OWN_LAYOUT})
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "large"), str(tmp_path / "small")]
    shards, used_bytes, seconds = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert shards == 200_000
    assert used_bytes < 180_000_000
    assert seconds < 2
