"""`headrace finetune`: train a trunk on for a downstream task, as a run of the ordinary trainer, and judge it."""

import dataclasses
import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.result import JsonOption, say_json, say_next, say_plan
from headrace.cli.stopping import leaving_lost_ranks
from headrace.cli.train import end_training, plan_training, run_training
from headrace.text import printable

if TYPE_CHECKING:
    from headrace.train.config import RunConfig
    from headrace.train.evaluate.recipes import FinetuneOptions
    from headrace.train.tasks.tasks import Prepared

RESULT = "finetune.json"


def finetune_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder, checkpoint folder, or exported or released model.safetensors.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="key=value", help="Overrides of the run file, for example objective.drop_path=0.2"),
    ] = None,
    task: Annotated[str, typer.Option(help="classify, longtail, segment or detect.")] = "classify",
    train: Annotated[str, typer.Option(help="What to fit on: a dataset; of masks and boxes also loose files.")] = "",
    test: Annotated[str, typer.Option(help="What to judge on at the end, of the same kind.")] = "",
    train_annotations: Annotated[
        str, typer.Option(help="segment: folder of masks; detect: json in COCO's form, --train has the pictures.")
    ] = "",
    test_annotations: Annotated[str, typer.Option(help="The same of --test.")] = "",
    packed: Annotated[str, typer.Option(help="Folder that loose files are packed into, once; OUT/data.")] = "",
    out: Annotated[str, typer.Option(help="Folder of the run; an existing run there is continued.")] = "",
    validation: Annotated[str, typer.Option(help="Dataset to look at after each epoch; --test if not given.")] = "",
    recipe: Annotated[str, typer.Option(help="A name of docs/finetune.md's table; empty = the task's first.")] = "",
    epochs: Annotated[int, typer.Option(help="Passes over the training samples; 0 = the recipe's.")] = 0,
    batch: Annotated[int, typer.Option(help="Images of a step, over all processes; 0 = the recipe's.")] = 0,
    image_size: Annotated[
        int, typer.Option(help="Side of the pictures; 0 = the recipe's, or that of the checkpoint.")
    ] = 0,
    classes: Annotated[int, typer.Option(help="Number of classes; 0 = as many as the training set has.")] = 0,
    ignore_label: Annotated[int, typer.Option(help="segment: the number in a mask of a pixel without a class.")] = 255,
    reduce_zero_label: Annotated[
        bool, typer.Option("--reduce-zero-label", help="segment: 0 in a mask is no class, and 1 is class 0 (ADE20K).")
    ] = False,
    mask_sizes: Annotated[
        str, typer.Option(help="segment: a mask of another size than its picture: refuse, or nearest (resize it).")
    ] = "refuse",
    balance: Annotated[
        str, typer.Option(help="longtail: none, effective (rare classes count more) or logits.")
    ] = "none",
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
    metric: Annotated[str, typer.Option(help="top1, or mean_per_class; of longtail mean_per_class.")] = "",
    write: Annotated[
        Path | None, typer.Option(help="Write the run file, for `headrace train`, and train nothing.")
    ] = None,
    json: JsonOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
) -> None:
    """Fine-tune the trunk of a checkpoint for a task, in full or through adapters, and judge it on a test set.

    Tasks: classify (top-1), longtail (mean over classes), segment (mIoU), detect (AP of boxes and masks). It is a run
    as any other: killed, started again it goes on; under torchrun several processes share it.

    Example: headrace finetune runs/a --train data/cifar10-train --test data/cifar10-test --out runs/a-tuned

    Adapters instead: headrace finetune runs/a --train ... --test ... --out runs/a-lora --recipe lora

    Masks: headrace finetune runs/a --task segment --train ade/train --test ade/val --out runs/a-ade
    """
    from headrace.pipeline.augment.describe import describe_augment
    from headrace.train.evaluate.ground_truth import GroundTruthConfig
    from headrace.train.evaluate.recipes import FinetuneOptions

    for name, value in (("--train", train), ("--test", test), ("--out", out)):
        if not value:
            raise ValueError(f"{name} is missing; see headrace finetune --help")
    options = FinetuneOptions(
        checkpoint=checkpoint,
        train=train,
        validation=validation or test,
        out=out,
        task=task,  # type: ignore[arg-type]  # it is checked there
        recipe=recipe,
        epochs=epochs,
        global_batch=batch,
        image_size=image_size,
        num_classes=classes,
        ignore_label=ignore_label,
        reduce_zero_label=reduce_zero_label,
        mask_sizes=mask_sizes,
        balance=balance,
        seed=seed,
        untrained=untrained,
    )
    metric = metric or ("mean_per_class" if task == "longtail" else "top1")
    truth = GroundTruthConfig(metric=metric, labels=ground_truth, classes=class_subset)
    annotations = (train_annotations, test_annotations)
    _refuse_of_other_tasks(options, truth, annotations, packed)
    prepared = _prepare(options, test, annotations, packed or f"{out}/data")
    if dry_run and prepared is not None and prepared.lacking:
        _say_lacking(prepared, json=json)
        return
    if prepared is not None:
        options, test = _packed(prepared, options, validation)
    config = _config(options, overrides or [])
    if write is not None:
        _write(config, write)
        return
    about = [f"recipe {options.recipe_name}: {options.chosen.says}"]
    if prepared is None:
        from headrace.train.evaluate.judge import check_judge

        # A mistake in the test set must not be found after hours of training.
        check_judge(config, test, truth)
    about.append(f"augmentation: {describe_augment(config.mixture.augment)}")
    about.append(f"judge on {test}, {truth.says if prepared is None else METRICS[task]}, into {out}/{RESULT}")
    if getattr(config.objective, "judged", "whole") == "slide":
        about.append(_windows(test, config.mixture.image_size))
    if dry_run:
        plan_training("finetune", config, json=json, before=about)
        return
    _run(config, options, test, truth, json=json)


METRICS = {"segment": "mIoU at the pictures' own resolution", "detect": "AP of boxes and masks by pycocotools"}
"""What a result is judged by."""


def _windows(test: str, side: int) -> str:
    from headrace.train.tasks.sliding import count_windows, stride_of

    windows, pictures = count_windows(test, side)
    return f"sliding windows of {side} pixels at a stride of {stride_of(side)}: {windows:,} for {pictures:,} pictures"


def _refuse_of_other_tasks(options: "FinetuneOptions", truth: Any, annotations: Sequence[str], packed: str) -> None:
    """Raise ValueError for an option that the task has no use for."""
    from headrace.train.tasks.tasks import DENSE

    dense = options.task in DENSE
    if not dense and (any(annotations) or packed):
        raise ValueError(f"--train-annotations, --test-annotations and --packed are for {', '.join(DENSE)}")
    if dense and (truth.labels or truth.classes or truth.metric != "top1"):
        raise ValueError(f"--ground-truth, --class-subset and --metric are of classes, not of --task {options.task}")
    of_masks = options.reduce_zero_label or options.ignore_label != 255 or options.mask_sizes != "refuse"
    if options.task != "segment" and of_masks:
        raise ValueError("--reduce-zero-label, --ignore-label and --mask-sizes are for --task segment")


def _prepare(options: "FinetuneOptions", test: str, annotations: Sequence[str], packed: str) -> "Prepared | None":
    """Return the data of a dense task, looked through; None of classification, which reads datasets as they are."""
    from headrace.train.objectives.dense.masks import MaskRules
    from headrace.train.tasks.tasks import DENSE, TruthFiles, prepare

    if options.task not in DENSE:
        return None
    fit_on, judge_on = (
        TruthFiles(pictures=pictures, annotations=truth, packed=f"{packed}/{name}")
        for name, pictures, truth in zip(("train", "test"), (options.train, test), annotations, strict=True)
    )
    rules = MaskRules(
        num_classes=options.num_classes,
        ignore_label=options.ignore_label,
        reduce_zero_label=options.reduce_zero_label,
        other_sizes=options.mask_sizes,  # type: ignore[arg-type]  # the options have looked
    )
    return prepare(options.task, fit_on, judge_on, rules=rules)


def _packed(prepared: "Prepared", options: "FinetuneOptions", validation: str) -> "tuple[FinetuneOptions, str]":
    """Pack what is not packed; return the options of the packed data, and the test set."""
    prepared.pack()
    changed = dataclasses.replace(
        options,
        train=prepared.train,
        validation=validation or prepared.test,
        num_classes=prepared.num_classes,
    )
    return changed, prepared.test


def _say_lacking(prepared: "Prepared", *, json: bool) -> None:
    lines = [f"{count:,} pictures would be packed into {folder}" for folder, count in prepared.lacking]
    lines += [f"classes: {prepared.num_classes}", "the data are in order; the run can be planned when they are packed"]
    say_plan("finetune", lines, json=json)


def _run(config: "RunConfig", options: "FinetuneOptions", test: str, truth: Any, *, json: bool) -> None:
    from headrace.train.tasks.tasks import Judgement, judge_task

    judgement = Judgement(
        task=options.task,
        train=options.train,
        test=test,
        num_classes=getattr(config.objective, "num_classes"),  # noqa: B009  each of these objectives has it
        truth=truth,
        reading=_reading(config),
        device=config.device,
    )
    result = run_training(config, json=json)
    facts: dict[str, Any] = {
        "out": options.out,
        "step": result.step,
        "task": options.task,
        "recipe": options.recipe_name,
        "accuracy": None,
        "metric": None,
    }
    if result.finished:
        weights = result.out / "model.safetensors"
        with leaving_lost_ranks():
            facts |= judge_task(weights, judgement)
    if result.is_first:
        if result.finished:
            _write_result(result.out / RESULT, facts)
        _show(facts, json=json)
    end_training(result)


def _config(options: Any, overrides: list[str]) -> "RunConfig":
    from headrace.config import build_config
    from headrace.overrides import apply_overrides
    from headrace.train.config import RunConfig
    from headrace.train.evaluate.begun import as_begun
    from headrace.train.evaluate.recipes import finetune_run
    from headrace.train.runs.weights import read_model

    data = as_begun(finetune_run(options, read_model(options.checkpoint)))
    return build_config(RunConfig, apply_overrides(data, overrides))


def _reading(config: "RunConfig") -> dict[str, Any]:
    """Return how the test set is read: as the validation set is."""
    names = ("center_fraction", "interpolation")
    return {} if config.validation is None else {name: getattr(config.validation, name) for name in names}


def _write(config: "RunConfig", path: Path) -> None:
    import yaml

    from headrace.atomic import write_atomic
    from headrace.train.config import public_dict

    if path.exists():
        raise ValueError(f"{path} exists already; name another file, or remove it")
    write_atomic(str(path), yaml.safe_dump(public_dict(config), sort_keys=False).encode())
    print(printable(f"wrote {path}"))
    say_next(["headrace", "train", str(path)])


def _write_result(path: Path, facts: dict[str, Any]) -> None:
    from headrace.atomic import write_atomic

    write_atomic(str(path), f"{json_module.dumps(facts, indent=1, allow_nan=False)}\n".encode())


def _show(facts: dict[str, Any], *, json: bool) -> None:
    if json:
        say_json("finetune", facts)
        return
    if facts["metric"] is None:
        print(printable(f"{facts['out']}: stopped and saved at step {facts['step']}; the same command continues"))
        return
    print(printable(f"{facts['out']}: {_told(facts)} on {facts['test_samples']:,} samples of {facts['test']}"))
    say_next(["headrace", "run-report", facts["out"]])


def _told(facts: dict[str, Any]) -> str:
    """Return the numbers of a result in one line."""
    if facts["metric"] == "miou":
        empty = f", {len(facts['empty_classes'])} classes without a pixel" if facts["empty_classes"] else ""
        return f"mIoU {facts['miou']:.4f}, pixel accuracy {facts['pixel_accuracy']:.4f}{empty}"
    if facts["metric"] == "AP":
        box, mask = (facts[kind]["AP"] for kind in ("box", "mask"))
        return f"AP of boxes {_number(box)}, of masks {_number(mask)}"
    left_out = f", {facts['left_out']:,} left out" if facts["left_out"] else ""
    splits = facts.get("splits", {})
    told = "".join(f", {name} {_number(one['accuracy'])} ({one['classes']} classes)" for name, one in splits.items())
    return f"{facts['metric']} {facts['accuracy']:.4f}{left_out}{told}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
