"""Reading checkpoints back, at any number of processes: each reads and checks the bytes that it needs.

Processes that hold the same rows share the reading: each tensor is read by one of them and sent to the others. Bytes
are checked before they count; a file that is not what was written is named, on all ranks, before any of them goes on.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from headrace.train.parallel.layout import ALL_OF_IT, Layout, Piece, piece_of
from headrace.train.parallel.ranks import ALONE, Ranks
from headrace.train.runs.optimizer_state import finish_state, make_state, optimizer_tensors, state_targets
from headrace.train.runs.saving import NO_AVERAGE
from headrace.train.runs.staging import flat_bytes
from headrace.train.runs.state_file import AVERAGE, Checkpoint
from headrace.train.runs.verified_file import DamagedError, Stored, VerifiedFile, opened, row_bytes, whole_shape


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows of one tensor lie, in the order of the rows."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: list[tuple[VerifiedFile, Stored]]

    def as_row(self) -> "Source":
        """Return the same number with one dimension."""
        parts = [(file, replace(stored, rows=stored.rows._replace(shape=(1,)))) for file, stored in self.parts]
        return Source(self.dtype, (1,), parts)

    def read(self, piece: Piece) -> Tensor:
        """Return the rows of `piece`: in its own memory if that is the host's, else in memory of their own."""
        local = piece.local
        in_place = local.device.type == "cpu" and local.is_contiguous()
        out = local if in_place else torch.empty(local.shape, dtype=local.dtype)
        view = flat_bytes(out).numpy().data
        if not piece.shape:
            file, stored = self.parts[0]
            file.read_into(view, stored.begin)
            return out
        end = piece.first + local.shape[0]
        for file, stored in self.parts:
            size = row_bytes(stored.rows)
            low = max(piece.first, stored.rows.first)
            high = min(end, stored.rows.first + stored.rows.shape[0])
            if low < high and size:
                inside = view[(low - piece.first) * size : (high - piece.first) * size]
                file.read_into(inside, stored.begin + (low - stored.rows.first) * size)
        return out


@contextmanager
def sources(checkpoint: Checkpoint, kind: str) -> Iterator[dict[str, Source]]:
    """Open the files of one kind and yield what they hold. Raises DamagedError naming the file."""
    with ExitStack() as stack:
        found: dict[str, list[tuple[VerifiedFile, Stored]]] = {}
        for path, facts in sorted(checkpoint.files_of(kind).items()):
            file = stack.enter_context(opened(VerifiedFile(path, facts)))
            for name, stored in file.read_header().items():
                found.setdefault(name, []).append((file, stored))
        yield {name: _source(checkpoint.path, name, parts) for name, parts in found.items()}


def _source(path: Path, name: str, parts: list[tuple[VerifiedFile, Stored]]) -> Source:
    parts = sorted(parts, key=lambda part: part[1].rows.first)
    rows = parts[0][1].rows
    shape, end = whole_shape(rows), 0
    for _, stored in parts:
        same = stored.rows.dtype == rows.dtype and whole_shape(stored.rows) == shape
        if not same or (stored.rows.first != end) or (not shape and len(parts) > 1):
            raise DamagedError(f"{path}: damaged checkpoint: the parts of {name[:80]!r} do not fit together")
        end += stored.rows.shape[0] if shape else 0
    if shape and end != shape[0]:
        raise DamagedError(f"{path}: damaged checkpoint: {name[:80]!r} has {end} of {shape[0]} rows")
    return Source(rows.dtype, shape, parts)


def read_tensors(checkpoint: Checkpoint, kind: str) -> dict[str, Tensor]:
    """Return all tensors of one kind, whole. Raises DamagedError naming the file that is not what was written."""
    for name in checkpoint.whole_sha256:
        check_whole(checkpoint, name)
    with sources(checkpoint, kind) as found:
        return {
            name: source.read(Piece(torch.empty(source.shape, dtype=source.dtype), source.shape))
            for name, source in found.items()
        }


def check_whole(checkpoint: Checkpoint, name: str) -> None:
    """Check a file of versions 1 and 2 by its one digest. Raises DamagedError."""
    path, expected = checkpoint.path / name, checkpoint.whole_sha256[name]
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(f"{path}: damaged checkpoint: {error}") from error
    if found != expected:
        raise DamagedError(f"{path}: damaged checkpoint: its sha256 is {found}, expected {expected}")


def restore(
    checkpoint: Checkpoint,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    ranks: Ranks = ALONE,
    layout: Layout = ALL_OF_IT,
    average: Mapping[str, Tensor] = NO_AVERAGE,
) -> int:
    """Put the checkpoint's weights and moments into place; return the bytes that this process read.

    `average` takes that of the weights, where the run has one by then. Called on all ranks. Raises DamagedError where a
    file is not what was written, and ValueError if shapes or names differ: on all ranks.
    """
    make_state(optimizer)
    with _same_on_all(ranks, checkpoint.path):
        for number, name in enumerate(sorted(checkpoint.whole_sha256)):
            if number % ranks.size == ranks.rank:
                check_whole(checkpoint, name)
    with ExitStack() as stack:
        with _same_on_all(ranks, checkpoint.path):
            weights = stack.enter_context(sources(checkpoint, "model"))
            moments = stack.enter_context(sources(checkpoint, "optimizer"))
            weights = _as_rows(weights, module.state_dict())
            moments = _as_rows(moments, optimizer_tensors(module, optimizer))
            targets = _fitting(weights, module.state_dict(), "the weights do not fit the model")
            shapes = {name: source.shape for name, source in moments.items()}
            state = state_targets(shapes, module, optimizer)
            targets += _fitting(moments, state, "the optimizer's state does not fit")
            if average:
                averages = stack.enter_context(sources(checkpoint, AVERAGE))
                targets += _fitting(averages, average, "the average of the weights does not fit")
        shares = _shares(targets, layout)
        with _same_on_all(ranks, checkpoint.path):
            for (source, piece), reader in zip(targets, shares, strict=True):
                if reader == ranks.rank:
                    piece.local.copy_(source.read(piece))
        for (_, piece), reader in zip(targets, shares, strict=True):
            _send(piece.local, reader, layout)
        files = {id(file): file for source, _ in targets for file, _ in source.parts}
    finish_state(state, module, optimizer)
    return sum(file.bytes_read for file in files.values())


def _fitting(found: Mapping[str, Source], tensors: Mapping[str, Tensor], complaint: str) -> list[tuple[Source, Piece]]:
    """Return each tensor of the run with where its bytes are, in an order that all ranks share."""
    differing = sorted(found.keys() ^ tensors.keys())
    if differing:
        where = "the run" if differing[0] in tensors else "the checkpoint"
        raise ValueError(f"{complaint}: only {where} has {differing[0]!r}")
    pieces = {name: piece_of(tensor) for name, tensor in sorted(tensors.items())}
    for name, piece in pieces.items():
        was, now = (found[name].dtype, found[name].shape), (piece.local.dtype, piece.shape)
        if was != now:
            raise ValueError(f"{complaint}: {name!r} was {_told(*was)}, is {_told(*now)}")
    return [(found[name], piece) for name, piece in pieces.items()]


def _as_rows(found: Mapping[str, Source], tensors: Mapping[str, Tensor]) -> dict[str, Source]:
    """Return what was found, a single number as one row where the run has it so: CLIP's scale had no dimension once."""
    return {
        name: source.as_row() if name in tensors and not source.shape and tensors[name].shape == (1,) else source
        for name, source in found.items()
    }


def _told(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _shares(targets: list[tuple[Source, Piece]], layout: Layout) -> list[int]:
    """Return for each tensor the rank that reads it, of those that hold the same.

    Each reads as much as the others, and neighbours in the file, as small ones share a block.
    """
    sizes = [piece.local.numel() * piece.local.element_size() for _, piece in targets]
    total, before, readers = max(1, sum(sizes)), 0, []
    for size in sizes:
        readers.append(layout.replicas[(before + size // 2) * len(layout.replicas) // (total + 1)])
        before += size
    return readers


def _send(tensor: Tensor, reader: int, layout: Layout) -> None:
    if layout.group is not None:
        whole = tensor.contiguous()
        distributed.broadcast(whole, src=reader, group=layout.group)
        tensor.copy_(whole)


@contextmanager
def _same_on_all(ranks: Ranks, path: Path) -> Iterator[None]:
    """Leave the context on all ranks alike: what one raises, the others do too."""
    error: ValueError | None = None
    try:
        yield
    except DamagedError as caught:
        error = caught
    except ValueError as caught:
        error = ValueError(f"{path}: {caught}")
    damaged, failed = ranks.sum([isinstance(error, DamagedError), error is not None], f"reading {path}")
    if error is not None and (not damaged or isinstance(error, DamagedError)):
        raise error
    if damaged:
        raise DamagedError(f"{path}: damaged checkpoint: another process found a file that is not what was written")
    if failed:
        raise ValueError(f"{path}: another process could not use it")
