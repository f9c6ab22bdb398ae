"""`headrace index`: give existing WebDataset tars an index."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from headrace.cli.engine import ExecutorOption, RayAddressOption, WorkersOption, engine_config
from headrace.cli.progress import show_progress
from headrace.cli.result import JsonOption, after_datasets, say_json, say_next, say_plan
from headrace.text import printable, without_secrets

if TYPE_CHECKING:
    from headrace.shards.foreign.index import IndexConfig, IndexSummary
    from headrace.shards.units import EngineConfig

SHOWN_FAULTS = 20
SHOWN_NAMES = 10


def index_command(
    urls: list[str] = typer.Argument(
        ..., help="Folders, globs, tars or patterns such as {000..999}.tar; any fsspec URL.", metavar="URL..."
    ),
    index_dir: str = typer.Option("", "--index-dir", help="Write the index there (for data that is read-only)."),
    fast: bool = typer.Option(False, "--fast", help="Read tar headers only: no crc32, size, label, caption."),
    rebuild: bool = typer.Option(False, "--rebuild", help="Index again what has an index."),
    keys: str = typer.Option(
        "auto", "--keys", help="Where keys end: first-dot (webdataset), last-dot, or auto: by the tar's names."
    ),
    image_extension: str = typer.Option(
        "", "--image-extension", help="Of several images of a sample the one to take, such as left.jpg."
    ),
    max_unused: float = typer.Option(
        0.01, "--max-unused", help="Share of samples and images that may be left out before index stops."
    ),
    cache: bool = typer.Option(
        False, "--cache", help="Only fill the streams' cache of indexes: URL is a mixture.yaml or an indexed dataset."
    ),
    columns: str = typer.Option("", "--columns", help="With --cache: columns to keep too, such as label,caption."),
    executor: ExecutorOption = "local",
    workers: WorkersOption = 0,
    ray_address: RayAddressOption = "",
    json: JsonOption = False,
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be indexed."),
) -> None:
    """Index existing WebDataset tars, so that they can be streamed and verified. The tars are not touched.

    Writes index/NAME.parquet, shards.parquet and dataset.json beside the tars or into --index-dir. Members that are
    part of no sample are counted, and named in index/rejects/.

    With --cache it indexes nothing: it reads the indexes that are there, so that no stream has to.

    Example: headrace index /data/laion/*.tar --index-dir /scratch/laion-index
    """
    if cache:
        passed_over = {
            "--fast": fast,
            "--rebuild": rebuild,
            "--keys": keys != "auto",
            "--image-extension": bool(image_extension),
            "--executor": executor != "local",
        }
        if given := [name for name, is_given in passed_over.items() if is_given]:
            raise ValueError(f"--cache reads the indexes that are there: leave {' and '.join(given)} out")
        names = [name.strip() for name in columns.split(",") if name.strip()]
        _fill_cache(urls, index_dir, names, workers, json=json, dry_run=dry_run)
        return
    if columns:
        raise ValueError("--columns is what --cache keeps: give --cache too, or leave it out")
    from headrace.shards.foreign.find import NAME_THEM, compressed_tars, find_tars, overlooked
    from headrace.shards.foreign.index import IndexConfig
    from headrace.shards.group import GroupConfig

    folders = find_tars(urls)
    if index_dir and len(folders) > 1:
        raise ValueError(f"--index-dir holds the index of one folder, got {len(folders)}: {', '.join(folders)}")
    config = IndexConfig(
        index_dir=index_dir or None,
        fast=fast,
        rebuild=rebuild,
        group=GroupConfig(keys=keys, image=image_extension or None),  # type: ignore[arg-type]
        max_unused=max_unused,
    )
    engine = engine_config(executor, workers, ray_address)
    compressed = [name for url in urls for name in compressed_tars(url)]
    others = [f"{url.rstrip('/')}/{name}" for url in urls for name in overlooked(url)]
    remarks = [f"not indexed, compressed: {_listed(compressed)}; unpack them"] if compressed else []
    remarks += [f"not indexed: {_listed(others)}; {NAME_THEM}"] if others else []
    if dry_run:
        say_plan("index", [*remarks, *_plan(folders, index_dir)], json=json)
        return
    if not json:
        for line in remarks:
            print(printable(line))
    found = _index(folders, config, engine, json=json)
    if json:
        say_json("index", {"remarks": remarks, "folders": found})
    else:
        say_next(*after_datasets(*folders, index_dir=index_dir))


def _fill_cache(
    urls: Sequence[str], index_dir: str, columns: Sequence[str], threads: int, *, json: bool, dry_run: bool
) -> None:
    """Keep the indexes of mixtures, and of single datasets, where streams look for them."""
    from headrace.config import load_config
    from headrace.pipeline import Mixture, Source
    from headrace.pipeline.fill import fill_index_cache

    files = [url for url in urls if url.endswith((".yaml", ".yml"))]
    alone = tuple(Source(name=url, url=url, index_dir=index_dir) for url in urls if url not in files)
    if index_dir and (files or len(alone) > 1):
        raise ValueError("--index-dir is the index of one dataset; a mixture names those of its sources itself")
    mixtures = [load_config(Mixture, file) for file in files] + ([Mixture(sources=alone)] if alone else [])
    if dry_run:
        named = [
            f"would keep the indexes of {without_secrets(source.url)}"
            for mixture in mixtures
            for source in mixture.sources
        ]
        say_plan("index", named, json=json)
        return
    found = []
    for mixture in mixtures:
        with show_progress("index") as on_progress:
            filled = fill_index_cache(mixture, columns, threads=threads, on_progress=on_progress)
        found.append(asdict(filled))
        if json:
            continue
        print(printable(f"{filled.folder}: {filled.num_indexes} indexes, {filled.num_made} of them new"))
        print(f"  {filled.num_bytes} bytes, at most {filled.max_bytes}")
        if filled.num_bytes > filled.max_bytes:
            print(f"  only a part is kept: raise index_cache_bytes of the mixture to {filled.num_bytes * 10 // 9}")
    if json:
        say_json("index", {"caches": found})


def _index(
    folders: Mapping[str, Sequence[str]], config: "IndexConfig", engine: "EngineConfig", *, json: bool
) -> list[dict[str, Any]]:
    from headrace.shards.foreign.index import index_folder

    found = []
    for folder, tars in folders.items():
        with show_progress("index") as on_progress:
            summary = index_folder(folder, tars, config, engine=engine, on_progress=on_progress)
        found.append({"folder": folder} | asdict(summary))
        if not json:
            for line in _lines(folder, summary):
                print(printable(line))
    return found


def _plan(folders: Mapping[str, Sequence[str]], index_dir: str) -> Iterator[str]:
    for folder, tars in folders.items():
        yield f"would index {len(tars)} tars of {folder} ({tars[0]} .. {tars[-1]}) into {index_dir or folder}"


def _lines(folder: str, summary: "IndexSummary") -> Iterator[str]:
    for line in summary.repaired:
        yield f"made again, its index was damaged: {line}"
    for shard, key, offset, message in summary.faults[:SHOWN_FAULTS]:
        yield f"{shard} sample {key!r} at byte {offset}: {message}"
    if len(summary.faults) > SHOWN_FAULTS:
        yield f"... and {len(summary.faults) - SHOWN_FAULTS} more faults of samples"
    skipped = f", {summary.without_image} samples without an image left out" if summary.without_image else ""
    counts = f"{summary.num_shards} shards, {summary.num_samples} samples, {len(summary.faults)} faults"
    yield f"{folder}: {counts}{skipped}"
    members = dict(summary.members)
    total, images, texts = sum(members.values()), members.pop("image", 0), members.pop("text", 0)
    not_read = members.pop("not-read", 0)
    rest = [f"{count} {reason}" for reason, count in members.items()]
    yield f"  members: {total} = " + " + ".join([f"{images} images", f"{texts} texts", f"{not_read} not read", *rest])
    if summary.not_read:
        extensions = _listed([f"{count} .{extension}" for extension, count in summary.not_read.items()])
        yield f"  not read, by extension: {extensions}"
    if summary.rules.get("last-dot"):
        tars = f"{summary.rules['last-dot']} of {summary.num_shards} tars"
        yield f"  keys end at the last dot in {tars}, whose names hold dots; webdataset's rule: --keys first-dot"
    if summary.columns:
        yield f"  more columns: {_listed(summary.columns)}"
    if summary.left_out:
        yield f"  no columns (lists, mappings, too many): {_listed(tuple(summary.left_out))}"
    if summary.classes:
        yield f"  {len(summary.classes)} classes: {_listed(summary.classes)}"
    if summary.unnumbered:
        yield f"  {summary.unnumbered} labels are text beside numbers: null in label, kept in label_text"
    if summary.rejects:
        yield f"  named in {summary.rejects}"


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)})" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
