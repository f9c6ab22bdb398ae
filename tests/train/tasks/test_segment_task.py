"""`headrace finetune --task segment`: masks of all kinds in, mIoU out; mistakes are one line that names the sample."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from headrace.demo.truth_files import class_mask, draw_truth, write_masked
from headrace.pipeline import open_stream
from headrace.shards.write import Sample, finish_dataset, write_shard
from headrace.train.evaluate.passes import whole_pictures
from headrace.train.objectives.dense.instances import PlaceThings
from headrace.train.objectives.dense.masks import IGNORED, PIXELS, MaskRules, PlaceMasks, read_mask
from headrace.train.objectives.dense.segment import Segment
from headrace.train.runs.metrics import read_metrics
from headrace.train.runs.weights import read_weights
from headrace.train.tasks.judge_segments import judge_segments
from headrace.train.tasks.pack import pack
from headrace.train.tasks.pairs import count_mask_classes, find_pairs
from headrace.train.tasks.tasks import TruthFiles, prepare
from tests.train.tasks.drawn import SEGMENT, finetune, png

RULES = MaskRules(num_classes=4)


def test_it_packs_trains_and_judges_and_a_cut_run_ends_in_the_same_bits(
    young: Path, masked: Path, tmp_path: Path
) -> None:
    words = [young, *SEGMENT, "--train", masked / "few", "--test", masked / "test", "--epochs", 2]
    words += ["--packed", tmp_path / "data", "checkpoint.keep=9", "objective.head=upernet", "objective.width=16"]
    assert "48 pictures would be packed" in finetune(*words, "--out", tmp_path / "a", "--dry-run")
    assert not (tmp_path / "data").exists()
    assert re.search(r"mIoU 0\.\d+, pixel accuracy 0\.\d+ on 24 samples", finetune(*words, "--out", tmp_path / "a"))
    first = json.loads((tmp_path / "a" / "finetune.json").read_text())
    assert first["classes"] == 4 == len(first["iou"])
    assert first["interpolation"] == "bicubic", "as the run's validation reads"
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    lines = [line for line in read_metrics(tmp_path / "a" / "metrics.jsonl") if line["event"] == "validation"]
    assert all(0 <= line["miou"] <= 1 for line in lines)
    shutil.rmtree(sorted((tmp_path / "a" / "checkpoints").iterdir())[-1])
    again = json.loads(finetune(*words, "--out", tmp_path / "a", "--json"))
    assert again == {"command": "finetune", **first}
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == weights


@torch.no_grad()
def test_the_judge_counts_every_pixel_of_the_pictures_own_size(young: Path, masked: Path, tmp_path: Path) -> None:
    """Against one picture at a time, padded and enlarged by hand."""
    pairs = find_pairs(str(masked / "test"), "", RULES)
    url = pack(pairs, tmp_path / "packed")
    judged = judge_segments(young / "model.safetensors", url, device="cpu")
    weights = read_weights(young / "model.safetensors")
    objective = weights.model.build().eval()
    assert isinstance(objective, Segment)
    weights.load_into(objective)
    counts = np.zeros((4, 4), np.int64)
    for number in range(len(pairs)):
        image = Image.open(masked / "test" / "images" / f"{number:04d}.jpg")
        truth = read_mask((masked / "test" / "masks" / f"{number:04d}.png").read_bytes())
        width, height = (round(side * 64 / max(image.size)) for side in image.size)
        square = np.zeros((64, 64, 3), np.uint8)
        top, left = (64 - height) // 2, (64 - width) // 2
        square[top : top + height, left : left + width] = image.resize((width, height), Image.Resampling.BILINEAR)
        logits = objective.logits(objective.normalise(square[None]))[..., top : top + height, left : left + width]
        whole = torch.nn.functional.interpolate(logits, size=truth.shape, mode="bilinear", align_corners=False)
        np.add.at(counts, (truth.ravel(), whole[0].argmax(0).numpy().ravel()), 1)
    assert judged["test_samples"] == 24
    ious = [counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c]) for c in range(4)]
    assert judged["pixel_accuracy"] == pytest.approx(np.trace(counts) / counts.sum(), abs=2e-3)
    assert judged["iou"] == pytest.approx(ious, abs=5e-3), "but for a level of a resized picture here and there"


def test_numbers_of_masks_are_read_as_they_are() -> None:
    numbers = np.array([[0, 1, 255], [2, 3, 0]], np.uint8)
    for mode in ("", "P"):
        assert (read_mask(png(numbers, mode)) == numbers).all(), "of a palette its places, not its colours"
    assert read_mask(png(np.array([[0, 300]], np.uint16))).tolist() == [[0, 300]]
    assert RULES.classes_of(numbers).tolist() == [[0, 1, IGNORED], [2, 3, 0]]
    reduced = MaskRules(num_classes=3, reduce_zero_label=True)
    assert reduced.classes_of(numbers).tolist() == [[IGNORED, 0, IGNORED], [1, 2, IGNORED]]


def _spoilt(mask: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / "masks" / "0003.png").write_bytes(mask) and None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoilt(png(np.zeros((5, 7), np.uint8))), "sample '0003': the mask has 7 x 5 pixels, its picture"),
        (
            _spoilt(png(np.zeros((9, 9), np.uint8), "RGB")),
            "sample '0003': a mask of mode RGB, whose pixels are colours",
        ),
        (_spoilt(png(np.zeros((9, 9), np.uint8))[:60]), "sample '0003': png:"),
        (_spoilt(b"\xff\xd8\xff\xe0 a jpeg"), "sample '0003': a mask of the format jpeg; expected png"),
        (lambda folder: shutil.rmtree(folder / "masks"), "masks: no such folder"),
        (lambda folder: shutil.copy(folder / "masks/0001.png", folder / "masks/0001.bmp"), "'0001' is there twice"),
    ],
)
def test_a_mask_that_is_none_is_one_line_that_names_its_sample(
    spoil: Callable[[Path], object], message: str, young: Path, tmp_path: Path
) -> None:
    write_masked(tmp_path / "a", seed=5, count=6)
    spoil(tmp_path / "a")
    with pytest.raises(ValueError, match=re.escape(message)) as told:
        finetune(young, *SEGMENT, "--train", tmp_path / "a", "--test", tmp_path / "a", "--out", tmp_path / "out")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_label_out_of_range_is_refused_and_a_class_without_a_pixel_is_told(young: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 6)):
        write_masked(tmp_path / name, seed=seed, count=6)
    mask = tmp_path / "b" / "masks" / "0002.png"
    good = mask.read_bytes()
    numbers = np.array(Image.open(mask))
    numbers[4, 7] = 9
    mask.write_bytes(png(numbers))
    words = [young, *SEGMENT, "--train", tmp_path / "a", "--test", tmp_path / "b", "--out", tmp_path / "out"]
    message = "sample '0002': the mask has label 9 at row 4, column 7 (1 such pixels); expected 0..5, 255 for no class"
    with pytest.raises(ValueError, match=re.escape(message)):
        finetune(*words, "--classes", 6)
    mask.write_bytes(good)
    said = finetune(*words, "--classes", 6, "--epochs", 1)
    assert "2 classes without a pixel" in said, "4 and 5 are in no mask"
    with pytest.raises(ValueError, match="holds pictures that were packed of other files or with other rules"):
        finetune(*words, "--classes", 7)


@pytest.mark.parametrize("kind", ["segment", "detect"])
def test_truth_of_another_size_than_its_picture_is_refused_in_a_dataset_packed_elsewhere(
    kind: str, tmp_path: Path
) -> None:
    if kind == "detect":
        pytest.importorskip("pycocotools")
    mask = np.repeat(np.arange(4, dtype=np.uint8), 8)[None].repeat(20, axis=0)
    record = {"id": 1, "width": 32, "height": 20, "instances": []}
    column = "mask" if kind == "segment" else "instances"
    truth = {"segment": (png(mask), png(mask[::2, ::2])), "detect": (record, record | {"height": 10, "width": 16})}
    values = [value if isinstance(value, bytes) else json.dumps(value) for value in truth[kind]]
    picture = io.BytesIO()
    Image.fromarray(np.full((20, 32, 3), 90, np.uint8)).save(picture, "png")
    schema = pa.schema([(column, pa.binary() if kind == "segment" else pa.string())])
    made = (Sample(key, picture.getvalue(), "png", {column: value}) for key, value in zip("ab", values, strict=True))
    write_shard(str(tmp_path), "00000", made, schema)
    finish_dataset(str(tmp_path), recipe_digest="other", facts={"classes": list("wxyz"), "categories": [1, 2, 3, 4]})
    files = TruthFiles(pictures=str(tmp_path))
    with pytest.raises(ValueError, match=r"00000\.tar: sample 'b': .* expected 32 x 20 pixels, got 16 x 10"):
        prepare(kind, files, files, rules=RULES)  # type: ignore[arg-type]
    mixture = whole_pictures(str(tmp_path), 32)
    place = PlaceMasks(mixture, RULES, column) if kind == "segment" else PlaceThings(mixture, column, num_classes=4)
    with open_stream(mixture, global_batch=2, columns=(column,), map=place, once=True) as stream:
        assert next(stream).valid.tolist() == [True, False], "whoever reads it without the command counts it as damaged"
    if kind == "segment":
        nearest = MaskRules(num_classes=4, other_sizes="nearest")
        prepare(kind, files, files, rules=nearest)
        place = PlaceMasks(mixture, nearest, column)
        with open_stream(mixture, global_batch=2, columns=(column,), map=place, once=True) as stream:
            first, second = next(stream).columns[PIXELS]
        assert (first == second).all()
        assert first[6:26].tolist() == mask.tolist()


def test_tars_of_pictures_and_masks_are_packed_as_folders_are(tmp_path: Path) -> None:
    write_masked(tmp_path / "a", seed=5, count=6)
    with tarfile.open(tmp_path / "some-000.tar", "w") as tar:
        for number in range(6):
            tar.add(tmp_path / "a" / "images" / f"{number:04d}.jpg", f"{number:04d}.jpg")
            tar.add(
                tmp_path / "a" / "masks" / f"{number:04d}.png", f"{number:04d}.{'mask.png' if number % 2 else 'png'}"
            )
        tar.add(tmp_path / "a" / "images" / "0000.jpg", "alone.jpg")
    of_tars = find_pairs(str(tmp_path / "some-*.tar"), "", RULES)
    of_folders = find_pairs(str(tmp_path / "a" / "images"), str(tmp_path / "a" / "masks"), RULES)
    assert len(of_tars) == len(of_folders) == 6
    assert count_mask_classes(of_tars) == 4
    for number in range(6):
        one, other = of_tars.sample(number), of_folders.sample(number)
        assert (one.image, one.columns["mask"]) == (other.image, other.columns["mask"])


def test_a_drawn_things_mask_and_box_are_what_is_seen() -> None:
    pixels, things = draw_truth(3, seed=8, side=96)
    mask = class_mask(things, pixels)
    assert set(np.unique(mask)) <= {0, 1, 2, 3}
    for thing in things:
        left, top, width, height = thing.box
        assert thing.mask[top : top + height, left : left + width].sum() == thing.mask.sum()
        own = pixels[thing.mask].mean(axis=0)
        channel = {"red": 0, "green": 1, "blue": 2}[thing.colour]
        assert own.argmax() == channel


@pytest.mark.full
def test_a_trained_trunk_beats_an_untrained_one(knowing: Path, masked: Path, tmp_path: Path) -> None:
    words = [knowing, *SEGMENT, "--train", masked / "few", "--test", masked / "test", "--epochs", 5]
    words += ["optimizer.lr=0.003", "--packed", tmp_path / "data"]
    finetune(*words, "--out", tmp_path / "trained")
    finetune(*words, "--out", tmp_path / "fresh", "--untrained")
    trained, fresh = (json.loads((tmp_path / n / "finetune.json").read_text())["miou"] for n in ("trained", "fresh"))
    assert trained > fresh + 0.1, f"{trained} against {fresh}; measured 0.77 against 0.44"
