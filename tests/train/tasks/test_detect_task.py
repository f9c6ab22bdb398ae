"""`headrace finetune --task detect`: files in COCO's form in, average precision out; mistakes are one line each."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.demo.truth_files import run_lengths, write_coco
from headrace.pipeline import Augment, Mixture, Sample, SampleError, Source, open_stream
from headrace.pipeline.augment.crop import Window
from headrace.train.batches import micro_batches
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.dense.detect import Detect, DetectConfig
from headrace.train.objectives.dense.instances import THINGS, PlaceThings, decoded_lengths, mask_of, placed
from headrace.train.objectives.dense.rcnn import ASPECTS, Anchors, _pool
from headrace.train.objectives.supervised import SupervisedConfig
from headrace.train.tasks.coco import read_coco
from headrace.train.tasks.judge_detections import average_precisions
from headrace.train.tasks.pack import pack
from tests.train.tasks.drawn import DETECT, TRUNK, finetune

DATA = ["--train-annotations", "{}/train/instances.json", "--test-annotations", "{}/test/instances.json"]
DATA = ["--train", "{}/train/images", "--test", "{}/test/images", *DATA]


def words_of(run: Path, boxed: Path, packed: Path) -> list[object]:
    return [run, *DETECT, *(word.format(boxed) for word in DATA), "--packed", packed]


def small(**changes: Any) -> Detect:
    sizes = {"num_classes": 3, "width": 16, "anchors": 32, "regions": 16, "proposals": 50} | changes
    objective = build_objective(
        DetectConfig(kind="detect", of=SupervisedConfig(**TRUNK), **sizes), image_size=64, seed=3
    )
    assert isinstance(objective, Detect)
    return objective


def batch_of(boxed: Path, folder: Path, objective: Detect) -> Any:
    url = pack(read_coco(str(boxed / "test" / "instances.json"), str(boxed / "test" / "images")), folder)
    mixture = Mixture(lanes=2, image_size=64, sources=(Source(name="a", url=url),))
    with open_stream(mixture, global_batch=6, columns=objective.columns, map=objective.sample_map(mixture)) as stream:
        return next(stream)


def test_parts_of_a_batch_sum_to_the_whole_and_every_weight_has_a_gradient(boxed: Path, tmp_path: Path) -> None:
    """What is sampled follows from seed and position alone, so ranks and micro-batches compute the same step."""
    objective = small(drop_path=0.5)
    batch = batch_of(boxed, tmp_path / "packed", objective)
    whole, report = objective(batch)
    parts = [objective(part) for part in micro_batches(batch, 2)]
    assert objective.num_terms(batch) == 6
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-4)
    assert whole.item() == pytest.approx(6 * sum(map(float, report.values())), rel=1e-4)
    empty = batch.rows(slice(0, 1))
    empty.columns[THINGS][0] = placed(
        {"instances": [], "height": 64, "width": 64}, Window(0, 0, 64, 64, False), side=64
    )
    objective(empty)[0].backward()
    lacking = [name for name, weight in objective.named_parameters() if weight.grad is None]
    assert lacking == [], "ranks reduce gradients together, so each must have all of them"


def test_masks_of_polygons_run_lengths_and_crowds() -> None:
    mask = np.zeros((40, 50), bool)
    mask[10:30, 5:25] = True
    from pycocotools import mask as coco_mask

    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert decoded_lengths(packed) == run_lengths(mask)
    with pytest.raises(ValueError, match="run lengths"):
        mask_of({"size": [40, 50], "counts": packed[:-1]}, height=40, width=50)
    polygon = [[5, 10, 25, 10, 25, 30, 5, 30]]
    lengths = {"size": [40, 50], "counts": run_lengths(mask)}
    assert (mask_of(lengths, height=40, width=50) == mask).all()
    assert (mask_of(polygon, height=40, width=50) == mask).all()
    thing = {"class": 1, "box": [5, 10, 20, 20], "area": 400, "crowd": 0, "segmentation": polygon}
    crowd = thing | {"crowd": 1, "segmentation": lengths}
    record = {"id": 1, "height": 40, "width": 50, "instances": [thing, crowd]}
    things = placed(record, Window(0, 0, 40, 50, False, fill=0), side=100)
    assert things.boxes_N4.tolist() == [[10, 30, 50, 70]], "a crowd is nothing to learn from"
    assert things.masks_NSS[0].sum() == 1600
    assert things.masks_NSS[0, 30:70, 10:50].all()
    assert len(placed(record, Window(0, 30, 40, 20, False), side=64).class_N) == 0, "the window does not show it"


def test_a_mask_is_as_large_as_its_own_pixels_and_not_as_its_box() -> None:
    """A thin one that is nowhere counts against the small, where pycocotools would measure its box of 64 x 64."""
    from pycocotools import mask as coco_mask

    thin = [[0, 0, 64, 60, 64, 64, 0, 4]]
    there = [[100, 100, 116, 100, 116, 116, 100, 116]]
    thing = {"id": 1, "class": 0, "box": [100, 100, 16, 16], "area": 256, "crowd": 0, "segmentation": there}
    record = {"id": 7, "height": 128, "width": 128, "instances": [thing]}
    results = []
    for polygons, box, score in ((thin, [0, 0, 64, 64], 0.9), (there, [100, 100, 16, 16], 0.5)):
        packed = coco_mask.merge(coco_mask.frPyObjects(polygons, 128, 128))
        found = {"size": [128, 128], "counts": packed["counts"].decode()}
        results.append({"image_id": 7, "category_id": 1, "bbox": box, "score": score, "segmentation": found})
    scores = average_precisions([record], results, [1])
    assert scores["mask"]["AP_small"] == pytest.approx(0.5, abs=0.01), "of two small ones the surer is wrong"
    assert scores["box"]["AP_small"] == 1, "that box is not small"


@pytest.mark.parametrize("text", ["o" * 1_000_000, "\u20ac", "\n"])
def test_a_text_of_run_lengths_that_is_none_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="run lengths"):
        decoded_lengths(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 1 << 40}, "width and height must be whole numbers"),
        ({"height": 64.5}, "width and height must be whole numbers"),
        ({"instances": [{"class": 3}]}, "class 3 is out of range: num_classes is 3"),
        ({"instances": [{"class": 0, "crowd": 0, "box": [0, 0, 9, 9], "segmentation": [[1e300] * 6]}]}, "a corner at"),
        ({"instances": [{"class": 0, "crowd": 0, "box": [0, 0, 9, 9], "segmentation": []}]}, "polygons must be 1"),
        ({"instances": 5}, "TypeError"),
    ],
)
def test_a_packed_record_that_is_none_is_a_damaged_sample(changes: dict[str, Any], message: str) -> None:
    """The column may be anybody's, and a few letters may ask for any amount of memory."""
    mixture = Mixture(lanes=1, image_size=32, sources=(Source(name="a", url="a"),), augment=Augment(crop="pad"))
    place = PlaceThings(mixture, "x", num_classes=3)
    text = json.dumps({"id": 1, "width": 64, "height": 64, "instances": []} | changes)
    with pytest.raises(SampleError, match=message):
        place(Sample(key="k", position=0, source="a", columns={"x": text}), np.random.default_rng(0))


def test_anchors_and_regions_lie_where_maps_of_any_stride_have_them() -> None:
    """Anchors of whole strides are torchvision's. Of patches of 14, 3.5 and more, they reach the end of the square."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    for strides in ((4.0, 8, 16, 32, 64), (3.5, 7, 14, 28, 56)):
        maps = [torch.zeros(1, 1, round(448 / stride), round(448 / stride)) for stride in strides]
        images = ImageList(torch.zeros(1, 0, 448, 448), [(448, 448)])
        (own,) = Anchors(strides)(images, maps)
        if strides[0] == 4:
            (theirs,) = AnchorGenerator(tuple((int(8 * one),) for one in strides), (ASPECTS,) * 5)(images, maps)
            assert torch.equal(own, theirs)
        middles = (own[:, :2] + own[:, 2:])[: 3 * maps[0].shape[-1] ** 2] / 2
        assert (middles.amin(), middles.amax()) == (0, 448 - strides[0])
    across = [torch.arange(round(448 / stride)).add(0.5).mul(stride) for stride in strides[:4]]
    ramps = {str(place): line.expand(1, 1, len(line), -1) for place, line in enumerate(across)}
    for left, right in ((380.0, 440.0), (20.0, 300.0)):
        read = _pool(strides[:4], 7)(ramps, [torch.tensor([[left, left, right, right]])], [(448, 448)])
        assert abs(float(read.mean()) - (left + right) / 2) <= 14, (
            "half a place of the map, not a seventh of the square"
        )


def test_average_precision_is_pycocotools_of_the_same_files(boxed: Path, tmp_path: Path) -> None:
    """What is right is 1; a box moved, a wrong class and a missed thing cost what COCO's own evaluation says."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = boxed / "test" / "instances.json"
    lot = read_coco(str(path), str(boxed / "test" / "images"))
    records = [json.loads(lot.sample(number).columns["instances"]) for number in range(len(lot))]
    truth = COCO(str(path))
    results = []
    for place, annotation in enumerate(truth.dataset["annotations"]):
        left, top, width, height = annotation["bbox"]
        one = {name: annotation[name] for name in ("image_id", "category_id")}
        box = [left + (2 if place % 3 == 0 else 0), top, width, height]
        results.append(one | {"bbox": box, "score": 0.9 - place / 1000, "segmentation": truth.annToRLE(annotation)})
    for one in results:
        one["segmentation"] = {"size": one["segmentation"]["size"], "counts": one["segmentation"]["counts"].decode()}
    perfect = average_precisions(records, results, lot.categories)["mask"]
    assert perfect["AP"] == 1
    from_zero = [
        record | {"instances": [thing | {"id": thing["id"] - 1} for thing in record["instances"]]} for record in records
    ]
    assert average_precisions(from_zero, results, lot.categories)["mask"]["AP"] == 1, "0 is a number as any other"
    results = results[:-4]
    own = average_precisions(records, results, lot.categories)
    # Things are small, medium or large by their mask; where results have boxes too, pycocotools takes those.
    for kind, called, unread in (("box", "bbox", "segmentation"), ("mask", "segm", "bbox")):
        (tmp_path / "results.json").write_text(
            json.dumps([{k: v for k, v in one.items() if k != unread} for one in results])
        )
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), called)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        stats = [None if value < 0 else pytest.approx(value, abs=1e-6) for value in evaluation.stats[:6].tolist()]
        assert list(own[kind].values()) == stats
    assert average_precisions(records, [], lot.categories)["box"]["AP"] == 0, "nothing found is no fault"


def _set(where: str, place: int, **changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[where][place].update(changes)


def _widened(content: dict[str, Any]) -> None:
    content["images"][1]["width"] += 1
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 101]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda content: content.pop("annotations"),
            "instances.json: not in COCO's form: it has no list 'annotations'",
        ),
        (lambda content: content["categories"].clear(), "its list 'categories' is empty"),
        (_set("images", 1, id=100), "images[1]: id 100 is there twice"),
        (_set("images", 1, width=0), "image 101: width and height must be whole numbers above 0"),
        (_set("images", 1, file_name="none.jpg"), "1 of its 6 pictures are not in"),
        (_set("images", 1, file_name="../0001.jpg"), "image 101: file_name must name a file in the folder"),
        (_widened, "0001.jpg: the picture has"),
        (_set("annotations", 2, image_id=7), "annotations[2] (id 3): image_id '7' is in no entry of images"),
        (_set("annotations", 2, category_id=7), "annotations[2] (id 3): category_id '7' is in no entry of categories"),
        (
            _set("annotations", 2, bbox=[1, 2, float("nan"), 4]),
            "annotations[2] (id 3): bbox must be four finite numbers",
        ),
        (
            _set("annotations", 2, segmentation=[[1, 2, 3, 4]]),
            "annotations[2] (id 3): a polygon is x, y of three corners",
        ),
        (_set("annotations", 2, segmentation={"size": [3, 4], "counts": [12]}), "run lengths of the size"),
        (
            _set("annotations", 0, segmentation={"size": [1, 1], "counts": "\\x1f"}),
            "annotations[0] (id 1): run lengths of the size",
        ),
        (_set("annotations", 2, id=1), "annotations[2] (id 1): its id must be a whole number that no other has"),
        (_set("annotations", 2, iscrowd=5), "annotations[2] (id 3): iscrowd must be 0 or 1"),
        (_set("annotations", 2, image_id=[101]), "annotations[2] (id 3): image_id '[101]' is in no entry of images"),
        (_set("annotations", 2, bbox=[1, 2, 3, 10**400]), "annotations[2] (id 3): bbox must be four finite numbers"),
        (
            _set("annotations", 2, segmentation=[[0, 0, 1e9, 0, 5, 5]]),
            "annotations[2] (id 3): a polygon has a corner at",
        ),
        (
            _set("annotations", 2, segmentation=[[0, 0, 5000, 9] * 999]),
            "(id 3): polygons must be 1 or more and go along",
        ),
        (_set("images", 1, width=1 << 16, height=1 << 16), "image 101: 65536 x 65536 pixels, over 67,108,864"),
        (_set("images", 1, file_name="0000.jpg"), "1 pictures are in two entries of images, such as '0000.jpg'"),
    ],
)
def test_a_json_that_is_wrong_is_one_line_that_names_the_entry(
    spoil: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    folder = write_coco(tmp_path / "a", seed=5, count=6)
    content = json.loads((folder / "instances.json").read_text())
    spoil(content)
    (folder / "instances.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        pack(read_coco(str(folder / "instances.json"), str(folder / "images")), tmp_path / "packed")
    assert "\n" not in str(told.value)


def test_a_box_without_an_area_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_coco(tmp_path / "a", seed=5, count=6)
    content = json.loads((folder / "instances.json").read_text())
    content["annotations"][0]["bbox"][2] = 0
    (folder / "instances.json").write_text(json.dumps(content))
    lot = read_coco(str(folder / "instances.json"), str(folder / "images"))
    assert sum(len(image.instances) for image in lot.images) == len(content["annotations"]) - 1
    assert "1 annotations have a box without an area" in caplog.text


def test_without_the_extra_it_says_what_to_install(
    young: Path, boxed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(ValueError, match=r"pip install 'headrace\[detection\]'"):
        finetune(*words_of(young, boxed, tmp_path / "data"), "--out", tmp_path / "a")


@pytest.mark.full
def test_a_trained_trunk_beats_an_untrained_one_and_a_cut_run_ends_in_the_same_bits(
    knowing: Path, boxed: Path, tmp_path: Path
) -> None:
    words = [*words_of(knowing, boxed, tmp_path / "data"), "--batch", 4, "--epochs", 3, "optimizer.lr=0.003"]
    words += ["validation.every=999", "checkpoint.every=40"]  # what a step costs is pictures: half of batches of 8
    assert re.search(r"AP of boxes 0\.\d+, of masks 0\.\d+ on 24", finetune(*words, "--out", tmp_path / "trained"))
    finetune(*words, "--out", tmp_path / "fresh", "--untrained")
    trained, fresh = (json.loads((tmp_path / n / "finetune.json").read_text()) for n in ("trained", "fresh"))
    for kind in ("box", "mask"):
        assert trained[kind]["AP"] > fresh[kind]["AP"] + 0.03, f"{trained} against {fresh}; measured 0.22 against 0.01"
    weights = (tmp_path / "trained" / "model.safetensors").read_bytes()
    shutil.rmtree(sorted((tmp_path / "trained" / "checkpoints").iterdir())[-1])
    finetune(*words, "--out", tmp_path / "trained")
    assert (tmp_path / "trained" / "model.safetensors").read_bytes() == weights
    assert json.loads((tmp_path / "trained" / "finetune.json").read_text()) == trained
    found = json.loads((tmp_path / "trained" / "detections.json").read_text())
    assert len(found) == trained["found"] > 0


@torch.no_grad()
def test_finding_tells_boxes_of_the_square_and_leaves_the_heads_ready_to_learn(boxed: Path, tmp_path: Path) -> None:
    objective = small().eval()
    batch = batch_of(boxed, tmp_path / "packed", objective)
    for found in objective.find(objective.normalise(batch.images)):
        assert (found.boxes_K4 >= 0).all()
        assert (found.boxes_K4 <= 64).all()
        assert set(found.class_K.tolist()) <= {0, 1, 2}
    assert objective.heads.training, "it is ready for the loss of a validation again"
