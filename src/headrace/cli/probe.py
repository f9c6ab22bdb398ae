"""`headrace probe`: how much a trained trunk knows."""

import json as json_module
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.result import JsonOption, say_plan

if TYPE_CHECKING:
    from headrace.train.evaluate.attentive import ProbeConfig

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
    json: JsonOption = False,
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
        written = f"write {target}{f' and {export}' if export else ''}"
        say_plan("probe", [*plan_probe(checkpoint, config), written], json=json)
        return
    result = probe(checkpoint, config, export=export)
    write_atomic(str(target), f"{json_module.dumps(result, indent=1, allow_nan=False)}\n".encode())
    # JSON without --json too: programs read it since there is a probe. So the next command is a field of it.
    following = shlex.join(["headrace", "probe", str(checkpoint), *_comparison(config)])
    print(json_module.dumps(result | {"next": following}, indent=1, allow_nan=False))


def _comparison(config: "ProbeConfig") -> list[str]:
    """Return the options of the comparison: the same protocol on the weights that this one did not take."""
    values = {
        "train": config.train,
        "test": config.test,
        "layers": config.layers,
        "epochs": config.epochs,
        "lrs": ",".join(map(str, config.lrs)),
        "samples": config.samples,
        "seed": config.seed,
        "center-fraction": config.center_fraction,
    }
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return words if config.untrained else [*words, "--untrained"]
