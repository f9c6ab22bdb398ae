"""`headrace index`: give existing WebDataset tars an index."""

import typer

from headrace.cli.engine import ExecutorOption, RayAddressOption, WorkersOption, engine_config
from headrace.cli.progress import show_progress


def index_command(
    urls: list[str] = typer.Argument(..., help="Folders, globs or tars; any fsspec URL.", metavar="URL..."),
    index_dir: str = typer.Option("", "--index-dir", help="Write the index there (for data that is read-only)."),
    fast: bool = typer.Option(False, "--fast", help="Read tar headers only: no crc32, size, label, caption."),
    rebuild: bool = typer.Option(False, "--rebuild", help="Index again what has an index."),
    executor: ExecutorOption = "local",
    workers: WorkersOption = 0,
    ray_address: RayAddressOption = "",
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be indexed."),
) -> None:
    """Index existing WebDataset tars, so that they can be streamed and verified. The tars are not touched.

    Writes index/NAME.parquet, shards.parquet and dataset.json beside the tars or into --index-dir.

    Example: headrace index /data/laion/*.tar --index-dir /scratch/laion-index
    """
    from headrace.shards.foreign.find import find_tars
    from headrace.shards.foreign.index import IndexConfig, index_folder
    from headrace.text import printable

    folders = find_tars(urls)
    if index_dir and len(folders) > 1:
        raise ValueError(f"--index-dir holds the index of one folder, got {len(folders)}: {', '.join(folders)}")
    config = IndexConfig(index_dir=index_dir or None, fast=fast, rebuild=rebuild)
    engine = engine_config(executor, workers, ray_address)
    for folder, tars in folders.items():
        if dry_run:
            names = printable(f"{folder} ({tars[0]} .. {tars[-1]})")
            print(f"would index {len(tars)} tars of {names} into {index_dir or folder}")
            continue
        with show_progress("index") as on_progress:
            summary = index_folder(folder, tars, config, engine=engine, on_progress=on_progress)
        for line in summary.repaired:
            print(printable(f"made again, its index was damaged: {line}"))
        for shard, key, offset, message in summary.faults[:20]:
            print(printable(f"{shard} sample {key!r} at byte {offset}: {message}"))
        if len(summary.faults) > 20:
            print(f"... and {len(summary.faults) - 20} more samples with faults")
        skipped = f", {summary.without_image} samples without an image left out" if summary.without_image else ""
        counts = f"{summary.num_shards} shards, {summary.num_samples} samples, {len(summary.faults)} faults"
        print(printable(f"{folder}: {counts}{skipped}"))
