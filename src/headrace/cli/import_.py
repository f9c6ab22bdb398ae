"""`headrace import`: images that lie around -> a dataset."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from headrace.cli.engine import ExecutorOption, RayAddressOption, WorkersOption, engine_config
from headrace.cli.progress import show_progress

if TYPE_CHECKING:
    from headrace.shards.imports.run import ImportSummary


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
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be imported."),
) -> None:
    """Import images into a dataset of tar shards; run again after a kill, it goes on.

    Every input becomes a sample, or is counted by reason and listed in OUT/rejects.parquet. A folder may hold a
    metadata.csv, .jsonl or .parquet with a column file_name; its other columns are kept.

    Example: headrace import cifar10-train.parquet /data/cifar10
    """
    from headrace.shards.group import GroupConfig
    from headrace.shards.imports.run import ImportConfig, import_images, open_source
    from headrace.text import printable

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
    num_shards = -(-opened.num_inputs // samples_per_shard)
    classes = f", {len(opened.classes)} classes" if opened.classes else ""
    if opened.left_out:
        print(printable(f"columns not imported: {', '.join(opened.left_out)}"))
    for remark in opened.remarks:
        print(printable(remark))
    if dry_run:
        inputs = f"{opened.num_inputs} inputs ({opened.kind}{classes})"
        print(printable(f"would import {inputs} into {num_shards} shards of {out}"))
        return
    if opened.classes and shuffle is None:
        print("the inputs stay in their order; a dataset sorted by class streams badly: --shuffle 0 mixes it")
    with show_progress("import") as on_progress:
        summary = import_images(opened, out, config, engine=engine, on_progress=on_progress)
    for line in _lines(out, summary, classes):
        print(printable(line))
    if not summary.num_samples:
        raise ValueError(f"{source}: none of {summary.num_inputs} inputs is an image that decodes")


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
