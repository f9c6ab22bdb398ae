"""`headrace import`: images that lie around -> a dataset."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from headrace.cli.engine import ExecutorOption, RayAddressOption, WorkersOption, engine_config
from headrace.cli.progress import show_progress
from headrace.cli.result import JsonOption, after_datasets, say_json, say_next, say_plan
from headrace.text import printable

if TYPE_CHECKING:
    from headrace.shards.imports.run import ImportConfig, ImportSummary
    from headrace.shards.imports.source import Source
    from headrace.shards.units import EngineConfig


def import_command(
    source: str = typer.Argument(..., help="Image folder (label = folder name), tar or parquet; file, folder or glob."),
    out: str = typer.Argument(..., help="Folder or URL of the dataset to write."),
    samples_per_shard: int = typer.Option(1000, "--samples-per-shard", help="Inputs of one output shard."),
    image_column: str = typer.Option("", "--image-column", help="Column of image bytes in parquet."),
    label_column: str = typer.Option("label", "--label-column", help="Column of the label in parquet."),
    shuffle: int | None = typer.Option(
        None,
        "--shuffle",
        help="Seed: shuffle all inputs. Sorted by class, a dataset streams badly.",
        show_default=False,
    ),
    keys: str = typer.Option(
        "auto", "--keys", help="Of WebDataset tars: where keys end: first-dot (webdataset), last-dot, or auto."
    ),
    image_extension: str = typer.Option(
        "", "--image-extension", help="Of several images of a sample the one to take, such as left.jpg."
    ),
    max_unused: float = typer.Option(
        0.01, "--max-unused", help="Share of samples and images that may be left out before import stops."
    ),
    follow_links: bool = typer.Option(
        False, "--follow-links", help="Of a folder: also read what links outside of it lead to."
    ),
    decode: bool = typer.Option(True, help="Decode every image; otherwise look at header and end only."),
    executor: ExecutorOption = "local",
    workers: WorkersOption = 0,
    ray_address: RayAddressOption = "",
    json: JsonOption = False,
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be imported."),
) -> None:
    """Import images into a dataset of tar shards; run again after a kill, it goes on.

    Every input becomes a sample, or is counted by reason and listed in OUT/rejects.parquet. A folder may hold a
    metadata.csv, .jsonl or .parquet with a column file_name; its other columns are kept.

    Example: headrace import cifar10-train.parquet /data/cifar10
    """
    from headrace.shards.group import GroupConfig
    from headrace.shards.imports.run import ImportConfig, open_source

    config = ImportConfig(
        samples_per_shard=samples_per_shard,
        image_column=image_column or None,
        label_column=label_column,
        shuffle=shuffle,
        group=GroupConfig(keys=keys, image=image_extension or None),  # type: ignore[arg-type]
        max_unused=max_unused,
        follow_links=follow_links,
        decode=decode,
    )
    engine = engine_config(executor, workers, ray_address)
    opened = open_source(source, config)
    if dry_run:
        say_plan("import", _plan(opened, out, config), json=json)
        return
    summary = _import(opened, out, config, engine, json=json)
    if not summary.num_samples:
        raise ValueError(f"{source}: none of {summary.num_inputs} inputs is an image that decodes")
    if not json:
        say_next(*after_datasets(out))


def _import(
    opened: "Source", out: str, config: "ImportConfig", engine: "EngineConfig", *, json: bool
) -> "ImportSummary":
    from headrace.shards.imports.run import import_images

    remarks = [*_remarks(opened), *_order(opened, config)]
    if not json:
        for line in remarks:
            print(printable(line))
    with show_progress("import") as on_progress:
        summary = import_images(opened, out, config, engine=engine, on_progress=on_progress)
    if json:
        facts = {"dataset": out, "remarks": remarks, "classes": list(opened.classes)}
        say_json("import", facts | asdict(summary))
    else:
        for line in _lines(out, summary, _classes(opened)):
            print(printable(line))
    return summary


def _plan(opened: "Source", out: str, config: "ImportConfig") -> Iterator[str]:
    yield from _remarks(opened)
    num_shards = -(-opened.num_inputs // config.samples_per_shard)
    inputs = f"{opened.num_inputs} inputs ({opened.kind}{_classes(opened)})"
    yield f"would import {inputs} into {num_shards} shards of {out}"


def _remarks(opened: "Source") -> Iterator[str]:
    if opened.left_out:
        yield f"columns not imported: {', '.join(opened.left_out)}"
    yield from opened.remarks


def _order(opened: "Source", config: "ImportConfig") -> Iterator[str]:
    if opened.classes and config.shuffle is None:
        yield "the inputs stay in their order; a dataset sorted by class streams badly: --shuffle 0 mixes it"


def _classes(opened: "Source") -> str:
    return f", {len(opened.classes)} classes" if opened.classes else ""


def _lines(out: str, summary: "ImportSummary", classes: str) -> Iterator[str]:
    yield f"{out}: {summary.num_samples} of {summary.num_inputs} inputs in {summary.num_shards} shards{classes}"
    for reason, count in summary.rejects.items():
        yield f"  rejected {count}: {reason}"
    if summary.notes:
        yield f"  imported without some of their text: {summary.notes}"
    for reason, count in summary.leftovers.items():
        yield f"  no input {count}: {reason}"
    if summary.not_read:
        counts = ", ".join(f"{count} .{extension}" for extension, count in summary.not_read.items())
        yield f"  not read, by extension: {counts}"
    if summary.rejects or summary.notes or summary.leftovers:
        yield f"  listed in {out.rstrip('/')}/rejects.parquet"
