"""Rows of tensors come back whole from any number of files, at any other number of processes."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.train.config import RunConfig, load_run
from headrace.train.parallel.layout import Layout, Piece
from headrace.train.parallel.ranks import ALONE
from headrace.train.runs.loading import read_tensors, sources
from headrace.train.runs.saving import Save
from headrace.train.runs.staging import streamed
from headrace.train.runs.state_file import Checkpoint, Progress, read_state
from headrace.train.runs.tensor_file import BLOCK_BYTES, DIGEST_BYTES, Facts
from headrace.train.runs.verified_file import DamagedError, VerifiedFile, opened

# More than one block of 1 MiB, rows that no block begins with, no row for some processes, no dimension.
TENSORS = {
    "large": torch.arange(700_000, dtype=torch.float32).reshape(700, 1000),
    "few rows": torch.arange(6, dtype=torch.int64).reshape(3, 2),
    "half": torch.arange(50).to(torch.bfloat16),
    "scalar": torch.tensor(7.0),
    "empty": torch.zeros(0, 4),
}
SPREAD = ("large", "few rows", "half")


def rows_on(tensor: torch.Tensor, shard: int, count: int) -> Piece:
    """The rows of one process, as torch.chunk cuts them."""
    size = -(-tensor.shape[0] // count)
    first = min(tensor.shape[0], shard * size)
    return Piece(tensor[first : first + size].clone(), tuple(tensor.shape), first, is_part=True)


def write(folder: Path, config: RunConfig, count: int) -> Checkpoint:
    """Write the tensors as `count` processes would, and return the checkpoint."""
    for shard in range(count):
        layout = Layout(shard=shard, num_shards=count)
        save = Save(folder, progress=Progress(step=1, stream={}), config=config, ranks=ALONE, layout=layout)
        if not shard:
            save.begin()
        pieces = {name: rows_on(TENSORS[name], shard, count) for name in SPREAD}
        if shard:
            pieces = {name: piece for name, piece in pieces.items() if len(piece.local)}
        else:
            pieces |= {name: Piece(TENSORS[name], tuple(TENSORS[name].shape)) for name in ("scalar", "empty")}
        save.write_part({"model": in_order(pieces), "optimizer": {}}, lambda _, piece: streamed([piece.local]))
    save.commit()
    return read_state(folder / "00000001")


def in_order(pieces: dict[str, Piece]) -> dict[str, Piece]:
    return dict(sorted(pieces.items(), key=lambda item: (-item[1].local.dtype.itemsize, item[0])))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    source = "{name: a, url: a}"
    path.write_text(
        f"{{out: o, seed: 1, steps: 1, global_batch: 1, objective: {{kind: aim, model: tiny}}, "
        f"mixture: {{seed: 1, image_size: 28, sources: [{source}]}}}}"
    )
    return load_run(path)


@settings(max_examples=20, deadline=None)
@given(wrote=st.integers(1, 5), reads=st.integers(1, 7))
def test_any_number_of_processes_reads_what_any_other_wrote(
    tmp_path_factory: pytest.TempPathFactory, config: RunConfig, wrote: int, reads: int
) -> None:
    checkpoint = write(tmp_path_factory.mktemp("c"), config, wrote)
    whole = read_tensors(checkpoint, "model")
    assert whole.keys() == TENSORS.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in TENSORS.items())
    for shard in range(reads):
        with sources(checkpoint, "model") as found:
            for name in SPREAD:
                expected = rows_on(TENSORS[name], shard, reads)
                read = found[name].read(expected._replace(local=torch.empty_like(expected.local)))
                assert torch.equal(read, expected.local)


def test_a_process_reads_the_bytes_it_needs_and_no_more_than_a_block_at_each_end(
    tmp_path: Path, config: RunConfig
) -> None:
    checkpoint = write(tmp_path, config, 1)
    with sources(checkpoint, "model") as found:
        (file, _) = found["large"].parts[0]
        before = file.bytes_read
        piece = rows_on(TENSORS["large"], 1, 4)
        found["large"].read(piece)
        assert file.bytes_read - before <= piece.local.numel() * 4 + 2 * (1 << 20)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda header: header["large"].update(data_offsets=[0, 1 << 60]), "does not lie inside the file"),
        (lambda header: header["large"].update(shape=[1 << 62, 1 << 62]), "has rows from 0 of 700"),
        (lambda header: header["large"].update(shape=[-700, -1000]), "has the shape"),
        (lambda header: header["large"].update(dtype="PICKLE"), "not a safetensors file"),
        (lambda header: header["large"].update(data_offsets=[0]), "not a safetensors file"),
        (lambda header: header.update(__metadata__={"headrace_rows": '{"large": [600, 700]}'}), "has rows from 600"),
        (lambda header: header.update(__metadata__={"headrace_rows": "[" * 100_000}), "not a safetensors file"),
    ],
)
def test_a_hostile_header_is_damage(
    tmp_path: Path, config: RunConfig, spoil: Callable[[dict[str, dict[str, object]]], object], message: str
) -> None:
    """Whoever writes the header also writes the digests."""
    path = write(tmp_path, config, 1).path / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    spoil(header)
    text = json.dumps(header).encode()
    facts = rewritten(path, len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(DamagedError, match=message), opened(VerifiedFile(path, facts)) as file:
        file.read_header()


def rewritten(path: Path, data: bytes) -> Facts:
    """Write `data` and return digests that fit it."""
    path.write_bytes(data)
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)]
    return Facts(len(data), b"".join(hashlib.sha256(block).digest()[:DIGEST_BYTES] for block in blocks))


def test_parts_that_do_not_fit_together_are_damage(tmp_path: Path, config: RunConfig) -> None:
    checkpoint = write(tmp_path, config, 3)
    del checkpoint.files["model-00002-of-00003.safetensors"]
    with pytest.raises(DamagedError, match=r"do not fit together|rows"), sources(checkpoint, "model"):
        pass


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, config: RunConfig) -> None:
    path = write(tmp_path, config, 1).path / "state.json"
    state = json.loads(path.read_text())
    state["files"]["../model.safetensors"] = state["files"].pop("model.safetensors")
    path.write_text(json.dumps(state))
    with pytest.raises(DamagedError, match="it names the files"):
        read_state(path.parent)
