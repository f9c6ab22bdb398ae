"""`headrace features`: what a trained trunk makes of a dataset, as files."""

import os
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.result import JsonOption, say_json, say_plan
from headrace.cli.stopping import leaving_lost_ranks


def features_command(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder, or exported model.safetensors.")],
    dataset: Annotated[str, typer.Argument(help="URL of the dataset.")],
    out: Annotated[str, typer.Option(help="A .parquet or .npy file, or a folder of parquet files.")],
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Blocks to average: last6, all, numbers such as 3,4,5; or end. Again for a column more."),
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Keep every token; else their mean.")] = False,
    dtype: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of the index to write beside, with commas; label if not given, empty = none."),
    ] = None,
    samples: Annotated[int, typer.Option(help="The first of the dataset; 0 = all.")] = 0,
    untrained: Annotated[bool, typer.Option("--untrained", help="Of fresh weights: the comparison.")] = False,
    center_fraction: Annotated[
        float, typer.Option(help="Side of the centre crop as a share of the short side; 0.875 as published.")
    ] = 1.0,
    interpolation: Annotated[str, typer.Option(help="bilinear or bicubic: how a picture is resized.")] = "bilinear",
    images_per_batch: Annotated[int, typer.Option(help="Images that go through the trunk at once.")] = 256,
    part: Annotated[str, typer.Option(help="1/4: the first of four commands that share the work.")] = "1/1",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")] = False,
) -> None:
    """Write the features of a dataset, with key and label of each row.

    Killed, the same command goes on where it was. Several processes: torchrun, or commands with --part; the last to
    end joins what all have made.

    Example: headrace features runs/a data/cifar10-train --out cifar10.parquet

    Every token of two sets of blocks: headrace features runs/a DATASET --out tokens.npy --tokens --layers last6
    --layers 3
    """
    from headrace.shards.part import parse_part
    from headrace.train.evaluate.feature_files import FilesConfig, plan_features, write_features
    from headrace.train.evaluate.trunk import open_trunk

    config = FilesConfig(
        out=out,
        layers=tuple(layers or ("last6",)),
        tokens=tokens,
        dtype=dtype,  # type: ignore[arg-type]  # the config refuses another
        columns=None if columns is None else tuple(name for name in columns.split(",") if name),
        samples=samples,
        untrained=untrained,
        center_fraction=center_fraction,
        interpolation=interpolation,  # type: ignore[arg-type]  # the config refuses another
        images_per_batch=images_per_batch,
    )
    chosen = parse_part(part)
    if dry_run:
        job = plan_features(open_trunk(checkpoint, untrained=untrained), dataset, config)
        shape = " x ".join(map(str, job.manifest["shape"]))
        blocks = "; ".join(f"{name}: blocks {', '.join(map(str, of))}" for name, of in job.manifest["layers"].items())
        lines = [
            f"features {checkpoint}, step {job.manifest['step']}: {blocks}",
            f"{job.samples:,} samples of {dataset}, {shape} numbers of {dtype} each: {job.num_bytes:,} bytes",
            f"{job.num_pieces:,} pieces of {job.piece_rows:,} rows in {config.folder}",
        ]
        say_plan("features", [*lines, *([] if config.is_folder else [f"joined into {out}"])], json=json)
        return
    with leaving_lost_ranks():
        result = write_features(checkpoint, dataset, config, part=(chosen.number - 1, chosen.of), device=device)
    if os.environ.get("RANK", "0") != "0":
        return
    if json:
        say_json("features", result)
    elif result["finished"]:
        shape = " x ".join(map(str, result["shape"]))
        print(f"{out}: features of {dataset}, {shape} numbers of {dtype} each")
    else:
        print(f"{out}: part {part} is done; {result['missing_pieces']} pieces of other parts are missing")
