"""`headrace probe`: how much a trained trunk knows."""

import json
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_LRS = "0.0003,0.001,0.003,0.01"


def probe_command(
    checkpoint: Annotated[Path, typer.Argument(help="Run folder, checkpoint folder, or exported model.safetensors.")],
    train: Annotated[str, typer.Option(help="Labelled dataset to fit the probe on.")],
    test: Annotated[str, typer.Option(help="Labelled dataset to judge it on.")],
    layers: Annotated[str, typer.Option(help="Blocks to average: last6, all, or numbers such as 3,4,5.")] = "last6",
    epochs: Annotated[int, typer.Option(help="Passes over the features.")] = 10,
    lrs: Annotated[str, typer.Option(help="Learning rates, all fitted in one pass.")] = DEFAULT_LRS,
    samples: Annotated[int, typer.Option(help="Training samples to use, the first of the dataset; 0 = all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the probe.")] = 0,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Probe fresh weights instead: the comparison.")
    ] = False,
    center_fraction: Annotated[
        float, typer.Option(help="Side of the centre crop as a share of the short side; 0.875 as published.")
    ] = 1.0,
    export: Annotated[
        Path | None, typer.Option(help="Folder for the trunk with the probe, in the form of AIM's released models.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write; beside the checkpoint if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Fit an attentive probe on the frozen trunk and print its accuracy with the protocol as JSON.

    Example: headrace probe runs/a --train data/cifar10-train --test data/cifar10-test

    The trunk without training: headrace probe runs/a --train ... --test ... --untrained
    """
    from headrace.files import write_atomic
    from headrace.train.evaluate.attentive import ProbeConfig, plan_probe, probe

    try:
        rates = tuple(float(text) for text in lrs.split(","))
    except ValueError as error:
        raise ValueError(f"--lrs {lrs!r}: expected numbers with commas between them, such as {DEFAULT_LRS}") from error
    config = ProbeConfig(
        train=train,
        test=test,
        layers=layers,
        epochs=epochs,
        lrs=rates,
        samples=samples,
        seed=seed,
        untrained=untrained,
        center_fraction=center_fraction,
    )
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    target = out or folder / f"probe-{'untrained' if untrained else 'trained'}.json"
    if dry_run:
        for line in plan_probe(checkpoint, config):
            typer.echo(line)
        typer.echo(f"write {target}{f' and {export}' if export else ''}")
        return
    text = json.dumps(probe(checkpoint, config, export=export), indent=1, allow_nan=False) + "\n"
    write_atomic(str(target), text.encode())
    typer.echo(text, nl=False)
