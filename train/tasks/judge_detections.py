"""Average precision of boxes and masks over a whole test set, by pycocotools.

Each picture is shown whole in its square; boxes and masks go back to the picture's own pixels. Crowds and areas are
judged as COCO does. Every rank looks at a part of the pictures, and all put theirs together.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.atomic import write_atomic
from headrace.pipeline import Batch, Mixture, open_stream
from headrace.pipeline.augment.config import Interpolation
from headrace.pipeline.augment.crop import Window
from headrace.shards.dataset import open_dataset
from headrace.text import without_secrets
from headrace.train.evaluate.passes import whole_pictures
from headrace.train.objectives.dense.detect import Detect
from headrace.train.objectives.dense.instances import check_detection, read_record
from headrace.train.objectives.dense.placement import boxes_in_picture
from headrace.train.objectives.dense.rcnn import Found
from headrace.train.parallel.precision import autocast
from headrace.train.parallel.ranks import Ranks, join_ranks
from headrace.train.runs.weights import read_weights
from headrace.train.tasks.read import categories_of, read_truth

IMAGES_PER_BATCH = 4
SCORES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
"""The first six numbers of pycocotools' summary."""
KINDS = {"box": ("bbox", "segmentation"), "mask": ("segm", "bbox")}
"""What pycocotools calls it, and what results must not have there: it measures things by their box if there is one."""
DETECTIONS = "detections.json"


def judge_detections(
    path: Path,
    url: str,
    *,
    out: Path | None = None,
    interpolation: Interpolation = "bilinear",
    device: str = "auto",
) -> dict[str, Any]:
    """Return the average precisions of the detector in the exported file `path`. Called on all ranks.

    With `out` rank 0 writes what was found there, in the form of COCO's results. In a damaged picture nothing is found;
    they are counted. Raises ValueError if `path` holds no detector, or the extra `detection` is not installed.
    """
    check_detection()
    weights = read_weights(path)
    objective = weights.model.build()
    if not isinstance(objective, Detect):
        raise ValueError(f"{path}: an objective {weights.model.objective.kind} detects nothing")
    with torch.no_grad():
        weights.load_into(objective)
    try:
        records = [read_record(str(text)) for text in read_truth(url, objective.config.column) if text is not None]
    except ValueError as error:
        raise ValueError(f"{url}: its column {objective.config.column}: {error}") from error
    ids = categories_of(url)
    with join_ranks(device) as ranks:
        objective.eval().to(ranks.device)
        found, damaged = _found(
            objective, whole_pictures(url, objective.image_size, interpolation=interpolation), ranks, ids
        )
        parts = ranks.gathered(json.dumps(found), "the judgement")
        if ranks.is_first and out is not None:
            write_atomic(str(out), json.dumps([one for part in parts for one in json.loads(part)]).encode())
        damaged = int(ranks.sum([damaged], "the judgement")[0])
    results = sorted((one for part in parts for one in json.loads(part)), key=lambda one: int(one["image_id"]))
    scores = average_precisions(records, results, ids)
    return {
        "metric": "AP",
        **scores,
        "test": without_secrets(url),
        "test_samples": len(records),
        "damaged": damaged,
        "found": len(results),
        "classes": objective.config.num_classes,
        "image_size": objective.image_size,
        "interpolation": interpolation,
    }


def average_precisions(
    records: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]], categories: Sequence[int]
) -> dict[str, dict[str, float | None]]:
    """Return `box` and `mask`, each with SCORES, of results in COCO's form against what the pictures hold.

    None where the set has nothing of the kind. Raises nothing for an empty list: nothing found is 0.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = _dataset(records, categories)
    scores: dict[str, dict[str, float | None]] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints as it goes
        truth.createIndex()
        for kind, (called, other) in KINDS.items():
            own = [{k: v for k, v in one.items() if k != other} for one in results]
            if not own:
                there = any(not thing["crowd"] for record in records for thing in record["instances"])
                scores[kind] = dict.fromkeys(SCORES, 0.0 if there else None)
                continue
            evaluation = COCOeval(truth, truth.loadRes(own), called)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            numbers = evaluation.stats[: len(SCORES)].tolist()
            scores[kind] = {
                name: None if value < 0 else round(value, 6) for name, value in zip(SCORES, numbers, strict=True)
            }
    return scores


def _dataset(records: Sequence[dict[str, Any]], categories: Sequence[int]) -> dict[str, Any]:
    images = [{"id": record["id"], "height": record["height"], "width": record["width"]} for record in records]
    annotations = [
        {
            "id": number,  # its own may be 0, which pycocotools takes for no match
            "image_id": record["id"],
            "category_id": categories[thing["class"]],
            "bbox": thing["box"],
            "area": thing["area"],
            "iscrowd": thing["crowd"],
            "segmentation": thing["segmentation"],
        }
        for number, (record, thing) in enumerate(
            ((record, thing) for record in records for thing in record["instances"]), start=1
        )
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": one} for one in categories]}


@torch.no_grad()
def _found(objective: Detect, mixture: Mixture, ranks: Ranks, ids: Sequence[int]) -> tuple[list[dict[str, Any]], int]:
    """Return what this rank finds, in COCO's form, and how many of its pictures were damaged."""
    results: list[dict[str, Any]] = []
    damaged, held = 0, open_dataset(mixture.sources[0].url).num_samples
    stream = open_stream(
        mixture,
        global_batch=IMAGES_PER_BATCH * ranks.size,
        rank=ranks.rank,
        world_size=ranks.size,
        columns=objective.columns,
        once=True,
    )
    with contextlib.closing(stream), autocast("auto", ranks.device):
        for batch in stream:
            damaged += int(((batch.position < held) & ~batch.valid).sum())
            for row, found in enumerate(objective.find(objective.normalise(batch.images))):
                if batch.valid[row]:
                    results += _in_coco_form(found, batch, row, objective, ids)
    return results, damaged


def _in_coco_form(
    found: Found, batch: Batch, row: int, objective: Detect, ids: Sequence[int]
) -> Iterator[dict[str, Any]]:
    text = batch.columns[objective.config.column][row]
    if text is None:
        return
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    record = read_record(str(text))
    height, width = record["height"], record["width"]
    window = Window(0, 0, height, width, False, fill=0)
    boxes_K4 = boxes_in_picture(found.boxes_K4.double().cpu().numpy(), window, side=objective.image_size)
    # In parts, as a mask is as large as the picture.
    for place, box in enumerate(boxes_K4):
        pasted = paste_masks_in_image(
            found.mask_K1MM[place : place + 1].float().cpu(), torch.from_numpy(box[None]).float(), (height, width)
        )
        mask_HW = (pasted[0, 0].numpy() >= 0.5).astype(np.uint8)
        yield {
            "image_id": record["id"],
            "category_id": ids[int(found.class_K[place])],
            "bbox": [round(float(one), 3) for one in (box[0], box[1], box[2] - box[0], box[3] - box[1])],
            "score": round(float(found.score_K[place]), 6),
            "segmentation": _run_lengths(mask_HW),
        }


def _run_lengths(mask_HW: Any) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask_HW))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}
