"""Open a mixture: read the manifests, check every number against the others, and refuse before anything is read.

Rank and world size are facts of the run, not of the mixture: the same mixture file serves every world size that
divides its lanes.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace.config import load_config
from headrace.pipeline import copies
from headrace.pipeline.advice import describe_weight_error, fitting_window, is_loud, warn_if_sorted
from headrace.pipeline.catalog import LABELS, NOTHING, OpenedSource
from headrace.pipeline.collate import Kind
from headrace.pipeline.decode import chosen_decoder
from headrace.pipeline.decode.memory import check_device
from headrace.pipeline.indexes import Indexes
from headrace.pipeline.mapping import MapFunction, Mapper
from headrace.pipeline.mixture import Mixture
from headrace.pipeline.order.epoch import SourceOrder
from headrace.pipeline.order.layout import lay_out
from headrace.pipeline.order.order import lanes_of_rank, nearest_divisors
from headrace.pipeline.order.plan import EndlessPlan, OncePlan, StreamPlan
from headrace.pipeline.order.segments import Segment
from headrace.pipeline.quarantine import check_path
from headrace.pipeline.state import identity_of
from headrace.pipeline.stream import OpenedMixture, Stream
from headrace.shards.dataset import ReadBytes
from headrace.shards.index_cache import IndexCache, cache_folder
from headrace.shards.ranges import RangeReader

log = logging.getLogger(__name__)


def open_stream(
    mixture: Mixture | str | Path,
    *,
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    columns: Sequence[str] = (),
    map: MapFunction | None = None,
    once: bool = False,
    device: str = "cpu",
) -> Stream:
    """Open a mixture, or the YAML file of one, as this rank's stream of batches.

    `columns` are columns of the index to deliver. `map(sample, rng)` is called for every sample, in the threads that
    decode; what it returns by name are columns of the batch too. With `once` every sample comes exactly once, in the
    order of the index, and the last batch is padded (`valid` is False). On a CUDA `device` (`cuda`: the current one,
    `cuda:N`) decoder `dali` delivers its images as uint8 tensors there, and `turbo` as arrays of pinned memory; their
    colours are not changed yet (`headrace.torch.DeviceBatches` does it, by `Stream.changes_left`). Raises ValueError
    naming the number to change.
    """
    if not isinstance(mixture, Mixture):
        mixture = load_config(Mixture, mixture)
    if isinstance(columns, str):
        raise ValueError(f"columns is a list of names, got the text {columns!r}")
    device = check_device(device)
    decoder = chosen_decoder(mixture, device)
    mapper = None if map is None else Mapper(map, mixture.seed)
    if mixture.quarantine:
        check_path(mixture.quarantine)
    with RangeReader(mixture.patience) as reader:
        indexes = Indexes(_index_cache(mixture))
        sources = tuple(OpenedSource(source, columns, indexes, reader.read_bytes) for source in mixture.sources)
        plan: StreamPlan
        if once:
            plan = _once_plan(sources, global_batch, rank, world_size)
        else:
            copies.warn_of_group(rank, world_size)
            plan = endless_plan(mixture, sources, global_batch=global_batch, rank=rank, world_size=world_size)
        kinds = _column_kinds(sources, columns, reader.read_bytes)
    stream = Stream(
        OpenedMixture(
            mixture=mixture,
            sources=sources,
            plan=plan,
            columns=kinds,
            identity=identity_of(
                mixture,
                sources,
                global_batch=global_batch,
                once=once,
                ends=plan.timeline.drained_from if isinstance(plan, EndlessPlan) else (),
                decoder=decoder,
            ),
            quarantine=f"{mixture.quarantine}.{rank}" if mixture.quarantine and world_size > 1 else mixture.quarantine,
            rank=rank,
            world_size=world_size,
            mapper=mapper,
            device=device,
        )
    )
    _log_opened(stream, mapper, once=once)
    if not once:
        _warn_if_sorted(sources, kinds)
    return stream


def _log_opened(stream: Stream, mapper: Mapper | None, *, once: bool) -> None:
    log.info(
        "opened %s of %d sources, %d samples: rank %d of %d, batches of %d",
        "a finite pass" if once else f"a mixture in {stream.mixture.lanes} lanes",
        len(stream.sources),
        sum(source.num_samples for source in stream.sources),
        stream.rank,
        stream.world_size,
        stream.global_batch,
    )
    if mapper is not None:
        log.info("map %s is called for every sample", mapper.name)
    _log_sources(stream, once=once)


def _warn_if_sorted(sources: Sequence[OpenedSource], kinds: Mapping[str, Kind]) -> None:
    """Say which sources come class by class, where labels were asked for."""
    if kinds.get("label") != LABELS:
        return
    for source in sources:
        rows = source.first_rows()
        if rows.kinds["label"] in (LABELS, NOTHING):  # what is remapped may be texts
            warn_if_sorted(source, rows.columns["label"])


def _index_cache(mixture: Mixture) -> IndexCache | None:
    folder = cache_folder(mixture.index_cache)
    return IndexCache(folder, max_bytes=mixture.index_cache_bytes) if folder is not None else None


def _log_sources(stream: Stream, *, once: bool) -> None:
    weights, errors = stream.weights, stream.weight_errors
    for source in stream.sources:
        name, num_shards = source.config.name, len(source.dataset.shards)
        log.info(
            "source %s: %d samples, %d shards, %.6g of the stream", name, source.num_samples, num_shards, weights[name]
        )
        if not once and is_loud(weights[name], errors[name]):
            log.warning("%s", describe_weight_error(name, weights[name], errors[name]))


def endless_plan(
    mixture: Mixture, sources: Sequence[OpenedSource], *, global_batch: int, rank: int, world_size: int
) -> EndlessPlan:
    """Return the plan of a mixture's opened sources. Raises ValueError naming the number to change."""
    segments = segments_of(mixture)
    for segment in segments:
        _check_segment(segment, global_batch)
    _check_world(segments, rank, world_size)
    orders = [
        SourceOrder(
            name=source.config.name,
            num_samples=source.num_samples,
            chunk_samples=source.config.chunk_samples,
            shuffle_window=source.config.shuffle_window,
            num_lanes=1,  # each segment has its own
            seed=mixture.seed,
            subset=source.subset,
        )
        for source in sources
    ]
    for segment in segments:
        if segment.num_lanes % world_size == 0:
            _check_memory(mixture, sources, orders, segment, world_size)
    repeats = [source.repeat for source in mixture.sources]
    return EndlessPlan(
        timeline=lay_out(orders, repeats, segments, global_batch=global_batch),
        chunks=[source.config.chunk_samples for source in sources],
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
    )


def segments_of(mixture: Mixture) -> list[Segment]:
    """Return the segments of a mixture, each with all its weights and its lanes; the first is the mixture itself."""
    lanes, weights = mixture.lanes, {source.name: source.weight for source in mixture.sources}
    segments = [Segment(start=0, num_lanes=lanes, weights=tuple(weights.values()))]
    for change in mixture.segments:
        weights |= change.weights
        lanes = change.lanes or lanes
        segments.append(Segment(start=change.start, num_lanes=lanes, weights=tuple(weights.values())))
    return segments


def _check_segment(segment: Segment, global_batch: int) -> None:
    lanes = segment.num_lanes
    where = f"the {lanes} lanes of the mixture" + (f" from position {segment.start}" if segment.start else "")
    if global_batch < 1 or global_batch % lanes:
        below = global_batch // lanes * lanes
        near = ", ".join(str(number) for number in (below, below + lanes) if number > 0)
        raise ValueError(
            f"global batch {global_batch} is not a multiple of {where}; "
            f"nearest that are: {near}; or set lanes to {nearest_divisors(max(1, global_batch), lanes)}"
        )
    if segment.start % global_batch:
        below = segment.start // global_batch * global_batch
        near = ", ".join(str(number) for number in (below, below + global_batch) if number > 0)
        raise ValueError(
            f"a segment starts at {segment.start}, which is not a multiple of the global batch {global_batch}; "
            f"nearest that are: {near}"
        )


def _check_world(segments: Sequence[Segment], rank: int, world_size: int) -> None:
    """Refuse a world size that divides the lanes of no segment; where it is another's turn, reading refuses it."""
    fits = world_size > 0 and any(segment.num_lanes % world_size == 0 for segment in segments)
    lanes_of_rank(world_size if fits else segments[0].num_lanes, rank=rank, world_size=world_size)


def _once_plan(sources: Sequence[OpenedSource], global_batch: int, rank: int, world_size: int) -> OncePlan:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..world_size-1, got rank {rank} of world size {world_size}")
    if global_batch < 1 or global_batch % world_size:
        raise ValueError(f"global batch {global_batch} is not a multiple of the world size {world_size}")
    return OncePlan(
        sizes=[source.num_samples for source in sources],
        chunks=[source.config.chunk_samples for source in sources],
        subsets=[source.subset for source in sources],
        global_batch=global_batch,
        rank=rank,
        world_size=world_size,
    )


def _column_kinds(sources: Sequence[OpenedSource], columns: Sequence[str], read: ReadBytes) -> dict[str, Kind]:
    """Return how each wanted column is delivered, from the first shard of each source.

    What one source has is null in those that do not. Raises ValueError for a column that none has, or that two sources
    would deliver otherwise.
    """
    kinds: dict[str, Kind] = {}
    first: dict[str, str] = {}
    for source in sources if columns else ():
        rows = source.first_rows(read)
        found = source.delivered(rows.kinds)
        source.check_labels(rows)
        source.lacks = frozenset(name for name in columns if found[name] == NOTHING)
        for name, kind in found.items():
            if name in source.lacks:
                continue
            if kinds.setdefault(name, kind) != kind:
                raise ValueError(
                    f"column {name} is {kinds[name].name} in source {first[name]!r} "
                    f"and {kind.name} in source {source.config.name!r}"
                )
            first.setdefault(name, source.config.name)
    nowhere = [name for name in columns if name not in kinds]
    if nowhere:  # or without a value in every first shard
        held = {name for source in sources for name in source.dataset.index(source.first_shard, read=read).column_names}
        kinds |= {name: NOTHING for name in nowhere if name in held}
        nowhere = [name for name in nowhere if name not in held]
    if nowhere:
        raise ValueError(sources[0].no_column(nowhere, sources[0].first_shard))
    for source in sources:
        source.kinds = kinds
        if source.lacks:
            log.info("source %r has no column %s: null", source.config.name, ", ".join(sorted(source.lacks)))
    return {name: kinds[name] for name in columns}


def _check_memory(
    mixture: Mixture,
    sources: Sequence[OpenedSource],
    orders: Sequence[SourceOrder],
    segment: Segment,
    world_size: int,
) -> None:
    """Refuse a segment whose windows do not fit: lanes of the rank x window of a lane x mean size of a sample."""
    here = [number for number, weight in enumerate(segment.weights) if weight]
    orders = [dataclasses.replace(orders[number], num_lanes=segment.num_lanes) for number in here]
    sizes = [sources[number].mean_bytes for number in here]
    num_lanes = segment.num_lanes // world_size
    needs = [num_lanes * order.window_samples * size for order, size in zip(orders, sizes, strict=True)]
    if sum(needs) <= mixture.memory_bytes:
        log.info("shuffle windows of %d lanes: %d of %d bytes", num_lanes, sum(needs), mixture.memory_bytes)
        return
    fits = fitting_window(orders, sizes, num_lanes=num_lanes, memory=mixture.memory_bytes)
    # A window of one chunk cannot be lowered; if a lower window fits, another source has more.
    largest = max((n for n, order in enumerate(orders) if not fits or order.window_chunks > 1), key=needs.__getitem__)
    order = orders[largest]
    part = f"of source {order.name!r} (its part is {needs[largest]} bytes)"
    if fits:
        change = f"shuffle_window {order.shuffle_window} {part}, {fits} for every source fits"
    else:
        change = f"chunk_samples {order.chunk_samples} {part}, as not even one chunk a lane fits"
    raise ValueError(
        f"the shuffle windows of {num_lanes} lanes hold {sum(needs)} bytes, memory_bytes is {mixture.memory_bytes}; "
        f"lower {change}, or raise memory_bytes to {sum(needs)}, or use more ranks: each has the windows of its lanes"
    )
