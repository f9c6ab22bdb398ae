"""`headrace import`: images that lie around -> a dataset."""

import typer

from headrace.cli.engine import ExecutorOption, RayAddressOption, WorkersOption, engine_config
from headrace.cli.progress import show_progress


def import_command(
    source: str = typer.Argument(..., help="Image folder (label = folder name), tar or parquet; file, folder or glob."),
    out: str = typer.Argument(..., help="Folder or URL of the dataset to write."),
    samples_per_shard: int = typer.Option(1000, "--samples-per-shard", help="Inputs of one output shard."),
    image_column: str = typer.Option("", "--image-column", help="Column of image bytes in parquet."),
    label_column: str = typer.Option("label", "--label-column", help="Column of the label in parquet."),
    decode: bool = typer.Option(True, help="Decode every image; otherwise look at header and end only."),
    executor: ExecutorOption = "local",
    workers: WorkersOption = 0,
    ray_address: RayAddressOption = "",
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be imported."),
) -> None:
    """Import images into a dataset of tar shards; run again after a kill, it goes on.

    Inputs that do not decode are counted by reason and listed in OUT/rejects.parquet.

    Example: headrace import cifar10-train.parquet /data/cifar10
    """
    from headrace.shards.imports.run import ImportConfig, import_images, open_source

    config = ImportConfig(
        samples_per_shard=samples_per_shard,
        image_column=image_column or None,
        label_column=label_column,
        decode=decode,
    )
    engine = engine_config(executor, workers, ray_address)
    opened = open_source(source, config)
    num_shards = -(-opened.num_inputs // samples_per_shard)
    classes = f", {len(opened.classes)} classes" if opened.classes else ""
    left_out = getattr(opened, "left_out", ())
    if left_out:
        print(f"columns not imported: {', '.join(left_out)}")
    if dry_run:
        print(f"would import {opened.num_inputs} inputs ({opened.kind}{classes}) into {num_shards} shards of {out}")
        return
    with show_progress("import") as on_progress:
        summary = import_images(opened, out, config, engine=engine, on_progress=on_progress)
    print(f"{out}: {summary.num_samples} of {summary.num_inputs} inputs in {summary.num_shards} shards{classes}")
    for reason, count in summary.rejects.items():
        print(f"  rejected {count}: {reason}")
    if summary.notes:
        print(f"  imported without some of their text: {summary.notes}")
    if summary.rejects or summary.notes:
        print(f"  listed in {out.rstrip('/')}/rejects.parquet")
    if not summary.num_samples:
        raise ValueError(f"{source}: none of {summary.num_inputs} inputs is an image that decodes")
