"""`headrace finetune`: fine-tune a trained trunk for classification, as a run of the ordinary trainer."""

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.result import JsonOption, say_json, say_next
from headrace.cli.stopping import leaving_lost_ranks
from headrace.cli.train import end_training, plan_training, run_training
from headrace.text import printable

if TYPE_CHECKING:
    from headrace.train.config import RunConfig

RESULT = "finetune.json"


def finetune_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint folder, or exported or released model.safetensors.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Overrides of the run file, for example objective.drop_path=0.2"),
    ] = None,
    train: Annotated[str, typer.Option(help="Labelled dataset to fit on.")] = "",
    test: Annotated[str, typer.Option(help="Labelled dataset to judge on at the end.")] = "",
    out: Annotated[str, typer.Option(help="Folder of the run; an existing run there is continued.")] = "",
    validation: Annotated[
        str, typer.Option(help="Labelled dataset to look at after each epoch; --test if not given.")
    ] = "",
    recipe: Annotated[str, typer.Option(help="mae-base, mae-large, simmim or lora.")] = "mae-base",
    epochs: Annotated[int, typer.Option(help="Passes over the training samples; 0 = the recipe's.")] = 0,
    batch: Annotated[int, typer.Option(help="Images of a step, over all processes; 0 = the recipe's.")] = 0,
    image_size: Annotated[int, typer.Option(help="Side of the pictures; 0 = that of the checkpoint.")] = 0,
    classes: Annotated[int, typer.Option(help="Number of classes; 0 = as many as the training set has.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the head, the order, crops and mixes.")] = 0,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Begin from fresh weights instead: the comparison.")
    ] = False,
    ground_truth: Annotated[
        str, typer.Option(help="File with several right labels a sample (ReaL): .json, .npy or .parquet.")
    ] = "",
    class_subset: Annotated[
        str, typer.Option(help="File with the class of the head for each label of --test (ImageNet-A, -R).")
    ] = "",
    metric: Annotated[str, typer.Option(help="top1, or mean_per_class.")] = "top1",
    write: Annotated[
        Path | None, typer.Option(help="Write the run file, for `headrace train`, and do nothing else.")
    ] = None,
    json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Fine-tune the trunk of a checkpoint for classification, in full or through adapters, and judge it on a test set.

    It is a run as any other: killed, started again it goes on; under torchrun several processes share it.

    Example: headrace finetune runs/a --train data/cifar10-train --test data/cifar10-test --out runs/a-tuned

    Adapters instead: headrace finetune runs/a --train ... --test ... --out runs/a-lora --recipe lora
    """
    from headrace.train.evaluate.ground_truth import GroundTruthConfig
    from headrace.train.evaluate.judge import check_judge, judge
    from headrace.train.evaluate.recipes import LEFT_OUT, RECIPES, FinetuneOptions

    for name, value in (("--train", train), ("--test", test), ("--out", out)):
        if not value:
            raise ValueError(f"{name} is missing; see headrace finetune --help")
    options = FinetuneOptions(
        checkpoint=checkpoint,
        train=train,
        validation=validation or test,
        out=out,
        recipe=recipe,
        epochs=epochs,
        global_batch=batch,
        image_size=image_size,
        num_classes=classes,
        seed=seed,
        untrained=untrained,
    )
    truth = GroundTruthConfig(metric=metric, labels=ground_truth, classes=class_subset)
    config = _config(options, overrides or [])
    if write is not None:
        _write(config, write)
        return
    # A mistake in the test set must not be found after hours of training.
    check_judge(config, test, truth)
    about = [
        f"recipe {recipe}: {RECIPES[recipe].says}",
        LEFT_OUT,
        f"judge on {test}, {truth.says}, into {out}/{RESULT}",
    ]
    if dry_run:
        plan_training("finetune", config, json=json, before=about)
        return
    result = run_training(config, json=json)
    facts: dict[str, Any] = {"out": out, "step": result.step, "recipe": recipe, "accuracy": None}
    if result.finished:
        weights = result.out / "model.safetensors"
        with leaving_lost_ranks():
            facts |= judge(weights, test, truth, **_reading(config), device=config.device)
    if result.is_first:
        if result.finished:
            _write_result(result.out / RESULT, facts)
        _show(facts, json=json)
    end_training(result)


def _config(options: Any, overrides: list[str]) -> "RunConfig":
    from headrace.config import apply_overrides, build_config
    from headrace.train.config import RunConfig
    from headrace.train.evaluate.recipes import finetune_run
    from headrace.train.runs.weights import read_model

    data = finetune_run(options, read_model(options.checkpoint))
    return build_config(RunConfig, apply_overrides(data, overrides))


def _reading(config: "RunConfig") -> dict[str, Any]:
    """Return how the test set is read: as the validation set is."""
    names = ("center_fraction", "interpolation")
    return {} if config.validation is None else {name: getattr(config.validation, name) for name in names}


def _write(config: "RunConfig", path: Path) -> None:
    import yaml

    from headrace.files import write_atomic
    from headrace.train.config import public_dict

    if path.exists():
        raise ValueError(f"{path} exists already; name another file, or remove it")
    write_atomic(str(path), yaml.safe_dump(public_dict(config), sort_keys=False).encode())
    print(printable(f"wrote {path}"))
    say_next(["headrace", "train", str(path)])


def _write_result(path: Path, facts: dict[str, Any]) -> None:
    from headrace.files import write_atomic

    write_atomic(str(path), f"{json_module.dumps(facts, indent=1, allow_nan=False)}\n".encode())


def _show(facts: dict[str, Any], *, json: bool) -> None:
    if json:
        say_json("finetune", facts)
    elif facts["accuracy"] is None:
        print(printable(f"{facts['out']}: stopped and saved at step {facts['step']}; the same command continues"))
    else:
        left_out = f", {facts['left_out']:,} left out" if facts["left_out"] else ""
        print(
            printable(
                f"{facts['out']}: {facts['metric']} {facts['accuracy']:.4f} on {facts['test_samples']:,} samples of "
                f"{facts['test']}{left_out}"
            )
        )
        say_next(["headrace", "run-report", facts["out"]])
