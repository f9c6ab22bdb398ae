"""What each downstream task needs of its data before a run, and how its result is judged.

Classification reads datasets as they are. Masks and boxes of others are packed once, into a folder beside the run; a
dataset that was packed is taken as it is.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.train.evaluate.ground_truth import GroundTruthConfig
from headrace.train.evaluate.judge import judge
from headrace.train.evaluate.recipes import Task, class_counts
from headrace.train.objectives.dense.instances import check_detection
from headrace.train.objectives.dense.masks import MaskRules
from headrace.train.tasks.coco import CocoLot, read_coco
from headrace.train.tasks.judge_detections import DETECTIONS, judge_detections
from headrace.train.tasks.judge_segments import judge_segments
from headrace.train.tasks.pack import Lot, is_dataset, pack
from headrace.train.tasks.pairs import Pairs, count_mask_classes, find_pairs
from headrace.train.tasks.read import categories_of, check_mask_sizes, check_record_sizes, num_classes_of

DENSE: tuple[Task, ...] = ("segment", "detect")


@dataclass(frozen=True, kw_only=True, slots=True)
class TruthFiles:
    """Pictures, and where what is right of them stands."""

    pictures: str
    """A dataset that was packed; a folder of pictures; or tars of pictures with their masks."""
    annotations: str = ""
    """A folder of masks, or a json in COCO's form."""
    packed: str = ""
    """Folder into which they are packed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """The data of a task as datasets, or what would be packed."""

    train: str
    test: str
    num_classes: int
    lots: Sequence[tuple[str, Lot]] = ()
    """Folder and content of each that is to be packed."""

    def pack(self) -> None:
        """Pack what is not packed yet."""
        for folder, lot in self.lots:
            pack(lot, Path(folder))

    @property
    def lacking(self) -> Sequence[tuple[str, int]]:
        """Folder and number of pictures of each that is not packed yet."""
        return [(folder, len(lot)) for folder, lot in self.lots if not is_dataset(folder)]


def prepare(task: Task, train: TruthFiles, test: TruthFiles, *, rules: MaskRules) -> Prepared:
    """Return the data of a dense task, looked through; nothing is written. `rules.num_classes` 0 = count them.

    Raises ValueError for the first thing that is wrong with what is to be packed.
    """
    if task == "detect":
        check_detection()
        return _prepare_boxes(train, test, classes=rules.num_classes)
    return _prepare_masks(train, test, rules)


def _prepare_masks(train: TruthFiles, test: TruthFiles, rules: MaskRules) -> Prepared:
    lots: list[tuple[str, Lot]] = []
    for files in (train, test):
        if is_dataset(files.pictures):
            rules = _with_classes(rules, rules.num_classes or num_classes_of(files.pictures))
            check_mask_sizes(files.pictures, rules)
            continue
        if is_dataset(files.packed):  # counted before
            rules = _with_classes(rules, rules.num_classes or num_classes_of(files.packed))
        pairs = find_pairs(files.pictures, files.annotations, rules)
        # Those of the training set are counted, and those of the test set held against them.
        rules = _with_classes(rules, rules.num_classes or count_mask_classes(pairs))
        facts = {"classes": [str(number) for number in range(rules.num_classes)]}
        lots.append((files.packed, Pairs(where=pairs.where, pairs=pairs.pairs, rules=rules, facts=facts)))
    return Prepared(train=_url(train), test=_url(test), num_classes=rules.num_classes, lots=lots)


def _prepare_boxes(train: TruthFiles, test: TruthFiles, *, classes: int) -> Prepared:
    lots: list[tuple[str, Lot]] = []
    categories: Sequence[int] = ()
    for files in (train, test):
        if is_dataset(files.pictures):
            own = categories_of(files.pictures)
            if categories and list(own) != list(categories):
                raise ValueError(f"{files.pictures}: its categories are {own[:20]}, those trained on {categories[:20]}")
            categories = own
            check_record_sizes(files.pictures)
            continue
        if not files.annotations:
            raise ValueError(
                f"{files.pictures}: boxes are read from a json in COCO's form; give --train-annotations and "
                "--test-annotations, or datasets that were packed before"
            )
        lot: CocoLot = read_coco(files.annotations, files.pictures, categories=categories)
        categories = lot.categories
        lots.append((files.packed, lot))
    if classes not in (0, len(categories)):
        raise ValueError(f"--classes {classes}: the json has {len(categories)} categories; leave it out")
    return Prepared(train=_url(train), test=_url(test), num_classes=len(categories), lots=lots)


def _with_classes(rules: MaskRules, num_classes: int) -> MaskRules:
    return dataclasses.replace(rules, num_classes=num_classes)


def _url(files: TruthFiles) -> str:
    return files.pictures if is_dataset(files.pictures) else files.packed


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """How the result of a task is judged."""

    task: Task
    """What was learnt."""
    train: str
    """The dataset it was learnt on."""
    test: str
    """The dataset to judge on."""
    num_classes: int
    """Classes that were learnt."""
    truth: GroundTruthConfig
    """Of classification: what is right."""
    reading: dict[str, Any]
    """How pictures are resized, and of classification cut, as arguments of `judge`: as in the run's validation."""
    device: str
    """Where, as in a run file."""


def judge_task(weights: Path, config: Judgement) -> dict[str, Any]:
    """Return how good exported weights are on the test set. Called on all ranks."""
    whole = {"device": config.device} | {k: v for k, v in config.reading.items() if k == "interpolation"}
    if config.task == "segment":
        return judge_segments(weights, config.test, **whole)
    if config.task == "detect":
        return judge_detections(weights, config.test, out=weights.parent / DETECTIONS, **whole)
    counts = class_counts(config.train, config.num_classes) if config.task == "longtail" else None
    return judge(weights, config.test, config.truth, **config.reading, device=config.device, train_counts=counts)
