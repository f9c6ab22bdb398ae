"""`headrace probe`: how much a trained trunk knows."""

import json as json_module
import os
import resource
import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.probe_suite import SuiteOptions, probe_suite, refuse_other_options
from headrace.cli.result import JsonOption, say_plan
from headrace.cli.stopping import leaving_lost_ranks

if TYPE_CHECKING:
    from headrace.train.evaluate.probe_config import ProbeConfig

NUMBERS = ("lrs", "weight_decays")
"""Fields that are numbers with commas between them."""
SHOWN = ("train", "test", "layers", "epochs", "lrs", "samples", "seed", "center_fraction")
"""Fields that the comparison says although they are the defaults: what one changes first."""
# ru_maxrss counts KiB on Linux.
RSS_UNIT = 1024


def probe_command(
    context: typer.Context,
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Run folder, checkpoint folder, or exported model.safetensors; for --dry-run a run file or aim-7B too."
        ),
    ],
    train: Annotated[str, typer.Option(help="Labelled dataset to fit the probe on.")] = "",
    test: Annotated[str, typer.Option(help="Labelled dataset to judge it on.")] = "",
    head: Annotated[str | None, typer.Option(help="attentive (default), linear, ...: what reads the features.")] = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="quick, aim, moco_v3, moco_v3_paper, mae or big_vision: a paper's settings; other options change them."
        ),
    ] = "quick",
    layers: Annotated[
        str | None, typer.Option(help="Blocks to average: last6 (quick), all, numbers such as 3,4,5; or end.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="batch, or none: what stands before a linear head.")] = None,
    sweep_depth: Annotated[
        bool, typer.Option("--sweep-depth", help="A table over depth too: each block alone, in the same passes.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training samples; quick: 10.")] = None,
    images_per_batch: Annotated[
        int | None, typer.Option(help="Images of a step, of all processes; quick: 512.")
    ] = None,
    lrs: Annotated[
        str | None, typer.Option(help="Learning rates, fitted in one pass; quick: 0.0003,0.001,0.003,0.01.")
    ] = None,
    weight_decays: Annotated[
        str | None, typer.Option(help="Weight decays, each with each learning rate; quick: 0.05.")
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="adamw, sgd or lars.")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Epochs of linear warm-up; quick: 0.")] = None,
    min_lr: Annotated[float | None, typer.Option(help="Where the cosine of the rate ends; quick: 1e-5.")] = None,
    clip_grad_norm: Annotated[float | None, typer.Option(help="Of each probe; 0 = none; quick: 3.")] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            help="none, crops, bilinear_crops or aim: other crops in each epoch, through the trunk each time."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Training samples to use, the first of the dataset; 0 = all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the probe.")] = 0,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Probe fresh weights instead: the comparison.")
    ] = False,
    crop: Annotated[
        str | None, typer.Option(help="center, or squash: a picture is resized to a square first; quick: center.")
    ] = None,
    center_fraction: Annotated[
        float | None,
        typer.Option(help="Side of the centre crop as a share of the short side; 0.875 as published, quick: 1."),
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="bilinear or bicubic: how a picture is resized; quick: bilinear, aim: bicubic.")
    ] = None,
    memory_bytes: Annotated[
        int | None, typer.Option(help="Most that features held in memory take; 8 GiB if not given.")
    ] = None,
    images_per_forward: Annotated[
        int | None, typer.Option(help="Images that go through the trunk at once; 256 if not given.")
    ] = None,
    metric: Annotated[str, typer.Option(help="top1, or mean_per_class.")] = "top1",
    ground_truth: Annotated[
        str, typer.Option(help="File with several right labels a test sample (ReaL): .json, .npy or .parquet.")
    ] = "",
    class_subset: Annotated[
        str, typer.Option(help="File with the class of --train for each label of --test (ImageNet-A, -R).")
    ] = "",
    suite: Annotated[
        Path | None, typer.Option(help="File that names several datasets: each is probed, and one table shows all.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for features on disk: the trunk runs once, also if it is killed.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    export: Annotated[
        Path | None, typer.Option(help="Folder for the trunk with the probe, in the form of AIM's released models.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write; beside the checkpoint if not given.")] = None,
    json: JsonOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it takes; write nothing.")
    ] = False,
    train_images: Annotated[int, typer.Option(help="With --dry-run: images of a training set that is not here.")] = 0,
    test_images: Annotated[int, typer.Option(help="With --dry-run: images of a test set that is not here.")] = 0,
    images_per_second: Annotated[
        float, typer.Option(help="With --dry-run: what a process takes through the trunk; measured if not given.")
    ] = 0.0,
    tflops: Annotated[float, typer.Option(help="With --dry-run: TFLOP/s of a process, to say the hours by.")] = 0.0,
    processes: Annotated[int, typer.Option(help="With --dry-run: processes that share the work.")] = 1,
) -> None:
    """Fit a probe on the frozen trunk and print its accuracy with the protocol as JSON.

    A probe that was killed goes on where it was when the same command is given again.

    Example: headrace probe runs/a --train data/cifar10-train --test data/cifar10-test

    The trunk without training: headrace probe runs/a --train ... --test ... --untrained

    What it would take: headrace probe aim-7B --protocol aim --train-images 1281167 --test-images 50000 --dry-run

    Several datasets, one table: headrace probe runs/a --suite examples/suite-aim15.yaml

    Several processes: torchrun --standalone --nproc-per-node 8 --no-python headrace probe ...
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if suite is not None:
        refuse_other_options(context)
        asked = SuiteOptions(out=out, untrained=untrained, device=device, json=json, dry_run=dry_run)
        probe_suite(Path(checkpoint), suite, asked)
        return
    config = _config(protocol, given)
    folder = Path(checkpoint) if Path(checkpoint).is_dir() else Path(checkpoint).parent
    target = out or folder / f"probe-{'untrained' if untrained else 'trained'}.json"
    if dry_run:
        from headrace.train.evaluate.probe_plan import PlanFacts, plan_probe

        named = {field.name: given[field.name] for field in fields(PlanFacts) if field.name in given}
        lines = plan_probe(checkpoint, config, PlanFacts(**named), cache=cache, device=device)
        if train and test:
            lines.append(f"write {target}{f' and {export}' if export else ''}")
        say_plan("probe", lines, json=json)
        return
    if not train or not test:
        raise ValueError("--train and --test name the labelled datasets to fit and to judge on; give both")
    _run(checkpoint, config, target=target, device=device, export=export, cache=cache)


def _config(protocol_name: str, given: dict[str, Any]) -> "ProbeConfig":
    from headrace.train.evaluate.probe_config import ProbeConfig, protocol

    chosen = protocol(protocol_name)
    chosen |= {field.name: given[field.name] for field in fields(ProbeConfig) if field.name in given}
    for name in NUMBERS:
        if name in given:
            chosen[name] = _numbers(f"--{name.replace('_', '-')}", given[name])
    return ProbeConfig(**chosen)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"{option} {text!r}: expected numbers with commas between them, such as 0.0003,0.001"
        ) from error


def _run(
    checkpoint: str, config: "ProbeConfig", *, target: Path, device: str, export: Path | None, cache: Path | None
) -> None:
    from headrace.atomic import write_atomic
    from headrace.train.evaluate.probes import probe

    with leaving_lost_ranks():
        result = probe(Path(checkpoint), config, device=device, export=export, cache=cache, work=target.parent)
    if os.environ.get("RANK", "0") != "0":
        return
    # Of this process, with what it has mapped at its peak.
    result["peak_memory_bytes"] = RSS_UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_atomic(str(target), f"{json_module.dumps(result, indent=1, allow_nan=False)}\n".encode())
    # JSON without --json too: programs read it since there is a probe. So the next command is a field of it.
    following = shlex.join(["headrace", "probe", checkpoint, *_comparison(config)])
    print(json_module.dumps(result | {"next": following}, indent=1, allow_nan=False))


def _comparison(config: "ProbeConfig") -> list[str]:
    """Return the options of the comparison: the same protocol on the weights that this one did not take."""
    words = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name == "untrained" or (value == field.default and field.name not in SHOWN):
            continue
        option = f"--{field.name.replace('_', '-')}"
        if field.name in NUMBERS:
            value = ",".join(map(str, value))
        words += [option] if value is True else [option, str(value)]
    return words if config.untrained else [*words, "--untrained"]
