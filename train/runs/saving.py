"""Writing checkpoints: whole or not at all, at once or beside the next steps.

Each process writes the rows that it alone holds into a folder whose name begins with a dot. When all have, rank 0 adds
`state.json` and renames the folder: a process that is killed at any instant leaves a checkpoint or none. They learn
of each other's part in sums that the main threads share; threads that write take part in none.
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from headrace.train.config import RunConfig
from headrace.train.parallel.layout import ALL_OF_IT, Layout, Piece, piece_of
from headrace.train.parallel.ranks import ALONE, Ranks
from headrace.train.runs.optimizer_state import optimizer_tensors
from headrace.train.runs.staging import streamed
from headrace.train.runs.state_file import AVERAGE, Progress, facts_from_dict, facts_to_dict, file_name, write_state
from headrace.train.runs.tensor_file import Facts, Rows, ordered, write_tensor_file
from headrace.train.runs.tensors import numbered

log = logging.getLogger(__name__)

# What each kind of file holds, on this process.
Contents = dict[str, dict[str, Piece]]
NO_AVERAGE: Mapping[str, Tensor] = MappingProxyType({})
Body = Callable[[str, Piece], Iterator[memoryview]]


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    progress: Progress,
    config: RunConfig,
    ranks: Ranks = ALONE,
    layout: Layout = ALL_OF_IT,
    average: Mapping[str, Tensor] = NO_AVERAGE,
) -> Path:
    """Write a checkpoint under `folder` and return its path; an older one of the same step is replaced.

    `average` is that of the weights, if the run has one. Called on all ranks. Raises OSError naming the folder, on all
    of them, and leaves nothing half written.
    """
    save = Save(folder, progress=progress, config=config, ranks=ranks, layout=layout)
    save.begin()
    with save.all_or_none(), ranks.all_write(save.what):
        save.write_part(contents_of(module, optimizer, layout, average), lambda _, piece: streamed([piece.local]))
    with save.all_or_none(), ranks.first_writes(save.what) as writes:
        if writes:
            save.commit()
    return save.final


def contents_of(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    layout: Layout,
    average: Mapping[str, Tensor] = NO_AVERAGE,
) -> Contents:
    """Return what this process writes: its rows of what is spread, and on one process all that is not."""
    kinds: dict[str, Mapping[str, Tensor]] = {
        "model": module.state_dict(),
        "optimizer": optimizer_tensors(module, optimizer),
    }
    if average:
        kinds[AVERAGE] = average
    if layout.replica:
        return {}
    return {kind: _own(tensors, layout) for kind, tensors in kinds.items()}


def _own(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Piece]:
    pieces = {name: piece_of(tensor) for name, tensor in tensors.items()}
    own = {
        name: piece
        for name, piece in pieces.items()
        if (piece.local.shape[0] > 0 if piece.is_part else layout.shard == 0)
    }
    rows = {name: rows_of(piece) for name, piece in own.items()}
    return {name: own[name] for name in ordered(rows)}


def rows_of(piece: Piece) -> Rows:
    """Return what a file says of this piece."""
    total = piece.shape[0] if piece.is_part else None
    return Rows(piece.local.dtype, tuple(piece.local.shape), piece.first, total)


class Save:
    """One checkpoint on its way to the disk."""

    def __init__(self, folder: Path, *, progress: Progress, config: RunConfig, ranks: Ranks, layout: Layout) -> None:
        self.final, self._temporary = folder / f"{progress.step:08d}", folder / f".{progress.step:08d}.tmp"
        self.what = f"the checkpoint of step {progress.step}"
        self._progress, self._config, self._ranks, self._layout = progress, config, ranks, layout
        self._began = time.perf_counter()

    def begin(self) -> None:
        """Make the folder that all processes write into; called on all ranks."""
        with self.all_or_none(), self._ranks.first_writes(self.what) as writes:
            if writes:
                shutil.rmtree(self._temporary, ignore_errors=True)
                self._temporary.mkdir(parents=True)

    def write_part(self, contents: Contents, body: Body) -> None:
        """Write the files of this process, and what they are."""
        number, count = self._layout.shard, self._layout.num_shards
        written: dict[str, Facts] = {}
        for kind, pieces in contents.items():
            name = file_name(kind, number=number, count=count)
            rows = {key: rows_of(piece) for key, piece in pieces.items()}
            views = (view for key, piece in pieces.items() for view in body(f"{kind}/{key}", piece))
            written[name] = write_tensor_file(self._temporary / name, rows, views)
        if written:
            text = json.dumps({name: facts_to_dict(facts) for name, facts in written.items()})
            half = self._temporary / f"part-{number:05d}.tmp"
            half.write_text(text, encoding="ascii")
            half.rename(self._part(number))

    def _part(self, number: int) -> Path:
        return self._temporary / f"part-{number:05d}.json"

    def is_written(self) -> bool:
        """True if every process has written its part."""
        return all(self._part(number).exists() for number in range(self._layout.num_shards))

    def commit(self) -> None:
        """Add `state.json` and give the folder its name; on rank 0, when all have written their part."""
        files: dict[str, Facts] = {}
        for number in range(self._layout.num_shards):
            part = json.loads(self._part(number).read_text("ascii"))
            files |= {name: facts_from_dict(data) for name, data in part.items()}
            self._part(number).unlink()
        write_state(self._temporary, self._progress, self._config, files)
        for path in (self._temporary / "state.json", self._temporary):
            _sync(path)
        if self.final.exists():
            put_away(self.final)
        self._temporary.rename(self.final)
        _sync(self.final.parent)
        size, seconds = sum(facts.num_bytes for facts in files.values()), time.perf_counter() - self._began
        log.info("checkpoint %s: %d bytes in %d files, %.1f s", self.final, size, len(files), seconds)

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Take what was half written away again where the context fails, and say what to do."""
        try:
            yield
        except OSError as error:
            raise self.failed(error) from error

    def failed(self, error: OSError) -> OSError:
        """Return what to raise for `error`, after nothing of the checkpoint is left."""
        if self._ranks.is_first:
            shutil.rmtree(self._temporary, ignore_errors=True)
        folder = self.final.parent
        free = shutil.disk_usage(folder if folder.exists() else "/").free
        text = (
            f"the checkpoint {self.final} could not be written: {error}; {free:,} bytes are free there; "
            "make room and run the same command again"
        )
        return numbered(OSError(text), error.errno)


def put_away(path: Path) -> None:
    """Remove a checkpoint; what a kill leaves of it has a name that no checkpoint has."""
    gone = path.with_name(f".{path.name}.old.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
