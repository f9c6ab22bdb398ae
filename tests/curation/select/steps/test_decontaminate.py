"""Copies of evaluation images: found whatever was done to them, as by brute force, and never kept."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from select_jobs import draw, ledger, make_row, run, write_job

from headrace.curation.annotate.annotator import digest
from headrace.curation.annotate.annotators.copy_embedding import CopyEmbedding, CopyEmbeddingConfig, descriptor
from headrace.curation.annotate.annotators.hash_variants import crop, turn
from headrace.curation.annotate.annotators.hashes import image_hashes, sha256_hex
from headrace.curation.annotate.annotators.onnx_image import open_image_model
from headrace.curation.select import evaluation, evaluation_facts, parts
from headrace.curation.select.evaluation import EvaluationSet, find_parts, hash_evaluation_set, read_part
from headrace.curation.select.hamming import distance_of, hash_words
from headrace.curation.select.steps import Decontaminate
from headrace.curation.select.steps.decontaminate import EmbeddingCheck
from headrace.shards.tar import ShardWriter
from headrace.shards.units import EngineConfig

Pixels = NDArray[np.uint8]
INLINE = EngineConfig(executor="inline")


def encode(pixels: Pixels, kind: str = "PNG", **options: Any) -> bytes:
    output = io.BytesIO()
    Image.fromarray(pixels).save(output, kind, **options)
    return output.getvalue()


def padded(pixels: Pixels) -> Pixels:
    return cv2.copyMakeBorder(pixels, 40, 40, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def image_row(number: int, data: bytes) -> dict[str, Any]:
    """Return a row with the hashes that annotate would give these bytes."""
    hashes = image_hashes(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    return make_row(
        number,
        sha256=sha256_hex(data),
        pdq=hashes.pdq,
        pdq_trimmed=hashes.pdq_trimmed,
        pdq_centre=hashes.pdq_centre,
        pdq_quality=hashes.quality,
    )


@pytest.fixture
def evaluation_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation"
    (folder / "class a").mkdir(parents=True)
    for number in range(6):
        (folder / "class a" / f"{number}.png").write_bytes(encode(draw(number)))
    (folder / "labels.txt").write_text("not an image")
    (folder / "class a" / ".hidden.png").write_bytes(b"rubbish")
    return folder


def step(folder: Path, **settings: Any) -> Decontaminate:
    return Decontaminate(against=(EvaluationSet(name="held-out", url=str(folder)),), **settings)


COPIES: dict[str, Callable[[Pixels], Pixels]] = {
    "resized": lambda pixels: cv2.resize(pixels, (97, 131), interpolation=cv2.INTER_AREA),
    "flipped": lambda pixels: np.ascontiguousarray(pixels[:, ::-1]),
    "padded": padded,
    "padded and flipped": lambda pixels: padded(np.ascontiguousarray(pixels[:, ::-1])),
    "darker": lambda pixels: (pixels * 0.8).astype(np.uint8),
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_changed_copy_is_dropped_and_its_neighbours_stay(tmp_path: Path, evaluation_folder: Path, kind: str) -> None:
    copies = [encode(COPIES[kind](draw(number)), "JPEG", quality=60) for number in range(6)]
    others = [encode(draw(number)) for number in range(100, 106)]
    job = write_job(tmp_path / "job", [[image_row(number, data) for number, data in enumerate(copies + others)]])
    summary = run(job, [step(evaluation_folder)])
    found = ledger(job)
    assert [row["kept"] for row in found] == [False] * 6 + [True] * 6
    assert summary.steps[-1].dropped == {"evaluation:held-out": 6}
    for number, row in enumerate(found[:6]):
        assert row["duplicate_of"] == f"held-out/class a/{number}.png"
        assert row["value"] <= row["threshold"] == 31


def test_a_copy_cut_to_a_square_is_found_by_its_centre_where_the_job_has_that(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    wide = [draw(number, 300)[:200] for number in range(4)]
    for number, pixels in enumerate(wide):
        (folder / f"{number}.png").write_bytes(encode(pixels))
    rows = [image_row(number, encode(pixels[:, 250:50:-1])) for number, pixels in enumerate(wide)]
    older = [{name: value for name, value in row.items() if name != "pdq_centre"} for row in rows]
    assert run(write_job(tmp_path / "job", [rows]), [step(folder)]).kept == 0
    assert run(write_job(tmp_path / "older", [older]), [step(folder)]).kept == 4


def test_the_same_bytes_are_dropped_whatever_their_quality(tmp_path: Path) -> None:
    flat = np.full((64, 64, 3), 200, np.uint8)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "flat.png").write_bytes(encode(flat))
    near = flat.copy()
    near[0, 0] = 0
    rows = [image_row(0, encode(flat)), image_row(1, encode(near))]
    job = write_job(tmp_path / "job", [rows])
    summary = run(job, [step(folder)])
    assert [row["kept"] for row in ledger(job)] == [False, True]
    assert ledger(job)[0]["value"] == 0
    assert summary.steps[-1].details["found_only_as_same_bytes"] == 1


def test_a_row_that_cannot_be_checked_is_dropped(tmp_path: Path, evaluation_folder: Path) -> None:
    rows = [make_row(0, pdq=None, pdq_trimmed=None, pdq_quality=None), image_row(1, encode(draw(50)))]
    job = write_job(tmp_path / "job", [rows])
    run(job, [step(evaluation_folder)])
    assert [row["reason"] for row in ledger(job)] == ["no-hash", None]


def test_distances_are_those_of_brute_force(
    tmp_path: Path, evaluation_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 1)
    rng = np.random.default_rng(0)
    table = hash_evaluation_set(step(evaluation_folder).against[0], str(tmp_path / "hashes"), INLINE)
    variants = [table[name].to_pylist() for name in evaluation.VARIANTS]
    references = hash_words(b"".join(item for column in variants for item in column))
    rows = []
    for number in range(300):
        near = np.frombuffer(references[number % len(references)].tobytes(), np.uint8).copy()
        bits = rng.choice(256, number % 45, replace=False)
        np.bitwise_xor.at(near, bits // 8, (1 << bits % 8).astype(np.uint8))
        other = rng.integers(0, 256, 32, dtype=np.uint8).tobytes()
        pair = ((near.tobytes(), other), (other, near.tobytes()), (near.tobytes(), near.tobytes()))[number % 3]
        rows.append(make_row(number, pdq=pair[0], pdq_trimmed=pair[1]))
    job = write_job(tmp_path / "job", [rows[:90], rows[90:]])
    run(job, [step(evaluation_folder, distance=25)])
    for row, made in zip(ledger(job), rows, strict=True):
        apart = min(int(distance_of(references, hash_words(made[name])).min()) for name in ("pdq", "pdq_trimmed"))
        assert row["value"] == (apart if apart <= 25 else None)
        assert row["kept"] == (apart > 25)


def write_tar(path: Path, images: Sequence[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path) as writer:
        for number, data in enumerate(images):
            writer.write(f"{number:04d}", {"png": data, "txt": b"caption"})


def write_parquet(path: Path, images: Sequence[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"bytes": data, "path": "x"} for data in images]
    pq.write_table(pa.table({"label": list(range(len(images))), "img": records}), path, row_group_size=2)


@pytest.mark.parametrize("kind", ["tar", "tars", "dataset", "parquet", "parquets"])
def test_every_kind_of_evaluation_set_is_read(tmp_path: Path, kind: str) -> None:
    images = [encode(draw(number, 64)) for number in range(5)]
    place = tmp_path / "set"
    url = place
    if kind == "tar":
        url = place / "a.tar"
        write_tar(url, images)
    elif kind == "tars":
        write_tar(place / "a.tar", images[:3])
        write_tar(place / "b.tar", images[3:])
    elif kind == "dataset":
        write_tar(place / "shards" / "00000.tar", images)
        (place / "dataset.json").write_text("{}")
    elif kind == "parquet":
        url = place / "a.parquet"
        write_parquet(url, images)
    else:
        write_parquet(place / "a.parquet", images[:3])
        write_parquet(place / "b.parquet", images[3:])
    read = [(name, data) for part in find_parts(str(url)) for name, data in read_part(part)]
    assert [data for _, data in read] == images
    assert len({name for name, _ in read}) == 5
    job = write_job(tmp_path / "job", [[image_row(number, data) for number, data in enumerate(images)]])
    assert run(job, [step(url)]).kept == 0


def test_a_folder_of_links_and_a_single_image_are_read_whole(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "class").mkdir(parents=True)
    (elsewhere / "class" / "a.JPEG").write_bytes(encode(draw(1, 64)))
    (elsewhere / "b.c.png").write_bytes(encode(draw(2, 64)))
    place = tmp_path / "set"
    place.mkdir()
    (place / "linked").symlink_to(elsewhere / "class")
    (place / "b.png").symlink_to(elsewhere / "b.c.png")
    (place / "loop").symlink_to(place)
    (place / "notes.txt").write_text("no image")
    assert [part.names for part in find_parts(str(place))] == [("b.png",), ("linked/a.JPEG",)]
    assert [part.names for part in find_parts(str(elsewhere / "b.c.png"))] == [("b.c.png",)]


def test_an_evaluation_set_that_cannot_be_read_is_refused(tmp_path: Path, evaluation_folder: Path) -> None:
    job = write_job(tmp_path / "job", [[make_row(0)]])
    with pytest.raises(ValueError, match="no such file or folder"):
        run(job, [step(tmp_path / "nowhere")])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="empty: no file there"):
        run(job, [step(empty)])
    (empty / "README.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images at .*; give a folder of images"):
        run(job, [step(empty)])
    (evaluation_folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a picture")
    with pytest.raises(ValueError, match=r"1 of 7 images do not decode.*broken.jpg"):
        run(job, [step(evaluation_folder)])
    words = tmp_path / "words.parquet"
    pq.write_table(pa.table({"word": ["a"]}), words)
    with pytest.raises(ValueError, match="no column of image bytes; columns: word"):
        run(job, [step(words)])


def test_a_changed_evaluation_set_makes_a_new_ledger(tmp_path: Path, evaluation_folder: Path) -> None:
    job = write_job(tmp_path / "job", [[image_row(number, encode(draw(number))) for number in (0, 1, 77)]])
    first = run(job, [step(evaluation_folder)])
    assert first.kept == 1
    assert run(job, [step(evaluation_folder)]) == first
    (evaluation_folder / "class a" / "1.png").write_bytes(encode(draw(77)))
    second = run(job, [step(evaluation_folder)])
    assert second.digest != first.digest
    assert [row["kept"] for row in ledger(job)] == [False, True, False]


def test_another_measure_is_measured_on_the_ledger_that_is_there(tmp_path: Path, evaluation_folder: Path) -> None:
    rows = [image_row(number, encode(draw(number))) for number in (0, 1, 77)]
    jobs = [write_job(tmp_path / name, [rows]) for name in ("once", "again")]
    without = run(jobs[1], [step(evaluation_folder, measure=0)])
    assert "measured" not in without.steps[-1].details
    fresh, found = (run(job, [step(evaluation_folder, measure=2)]) for job in jobs)
    assert found.steps[-1].details["measured"]["images"] == 2
    assert (found, found.digest) == (fresh, without.digest)
    (place,) = [path for path in Path(jobs[1].ledgers).iterdir() if (path / "summary.json").exists()]
    assert (place / "summary.json").read_bytes() == (Path(jobs[0].ledgers) / place.name / "summary.json").read_bytes()


def test_known_bytes_are_not_hashed_again(
    tmp_path: Path, evaluation_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = step(evaluation_folder).against[0]
    first = hash_evaluation_set(against, str(tmp_path / "hashes"), INLINE)

    def refuse(_data: bytes) -> Any:
        raise AssertionError("hashed again")

    monkeypatch.setattr(evaluation, "_hash", refuse)
    assert hash_evaluation_set(against, str(tmp_path / "hashes"), INLINE).equals(first)


def test_hashes_of_another_version_are_taken_anew(tmp_path: Path, evaluation_folder: Path) -> None:
    against = step(evaluation_folder).against[0]
    first = hash_evaluation_set(against, str(tmp_path / "hashes"), INLINE)
    (path,) = (tmp_path / "hashes" / "held-out").iterdir()
    other = pq.read_table(path)
    place = other.schema.get_field_index("trimmed")
    other = other.set_column(place, "trimmed", pa.array([bytes(32)] * other.num_rows, pa.binary(32)))
    pq.write_table(other.replace_schema_metadata({"headrace.hashes": "1"}), path)
    assert hash_evaluation_set(against, str(tmp_path / "hashes"), INLINE).equals(first)
    assert pq.read_table(path)["trimmed"].to_pylist() == first["trimmed"].to_pylist()


def test_the_number_of_images_a_unit_changes_nothing_but_the_files(
    tmp_path: Path, evaluation_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = step(evaluation_folder).against[0]
    whole = hash_evaluation_set(against, str(tmp_path / "one"), INLINE)
    monkeypatch.setattr(evaluation, "IMAGES_PER_UNIT", 4)
    assert hash_evaluation_set(against, str(tmp_path / "two"), INLINE).equals(whole)
    assert len(list((tmp_path / "two" / "held-out").iterdir())) == 2
    monkeypatch.setattr(evaluation, "IMAGES_PER_UNIT", 500)
    assert hash_evaluation_set(against, str(tmp_path / "two"), INLINE).equals(whole)
    assert len(list((tmp_path / "two" / "held-out").iterdir())) == 1


CUTS: dict[str, Callable[[Pixels], Pixels]] = {
    "crop": lambda pixels: crop(pixels, 0.95, down=0.3, right=0.7),
    "turn": lambda pixels: turn(pixels, 3),
    "turn without corners": lambda pixels: turn(pixels, -3, inside=True),
}


def test_variants_find_crops_and_turns_and_no_other_picture(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    folder.mkdir()
    # Blurred, as photographs are: blocks with hard edges move more bits than any of them.
    pictures = [cv2.GaussianBlur(draw(number), (0, 0), 4) for number in range(26)]
    for number in range(6):
        (folder / f"{number}.png").write_bytes(encode(pictures[number]))
    copies = [encode(change(pictures[number])) for change in CUTS.values() for number in range(6)]
    others = [encode(pixels) for pixels in pictures[6:]]
    job = write_job(tmp_path / "job", [[image_row(number, data) for number, data in enumerate(copies + others)]])
    plain = run(job, [step(folder)]).steps[-1]
    found = run(job, [step(folder, variants=True)]).steps[-1]
    assert sum(plain.dropped.values()) <= 3
    assert sum(found.dropped.values()) >= 16
    assert all(row["kept"] for row in ledger(job)[18:])
    for row in ledger(job)[:18]:
        assert row["kept"] or row["duplicate_of"] == f"held-out/{row['input_row'] % 6}.png"
    # The same facts, from what lies beside the ledgers; and the recall measured on the set says as much.
    before, after = (one.details["measured"] for one in (plain, found))
    assert before["images"] == after["images"] == 6
    assert before["recall"]["JPEG 30"] == before["recall"]["mirror image"] == 1
    assert before["recall"]["turn 3 degrees"] < 0.2 < 0.8 < after["recall"]["turn 3 degrees"]
    assert before["copies_of_another_image"] == after["copies_of_another_image"] == 0
    assert "PDQ of 27 crops and 12 turns, 31 bits" in found.details["compared_by"]


def test_facts_of_bytes_seen_before_are_not_made_again(tmp_path: Path, evaluation_folder: Path) -> None:
    job = write_job(tmp_path / "job", [[image_row(0, encode(draw(3)))]])
    made: list[Pixels] = []
    asked = step(evaluation_folder, variants=True, measure=0)
    with pytest.MonkeyPatch.context() as patch:
        variants = evaluation_facts.image_variants
        patch.setattr(evaluation_facts, "image_variants", lambda pixels: made.append(pixels) or variants(pixels))
        run(job, [asked])
        (evaluation_folder / "class a" / "new.png").write_bytes(encode(draw(7)))
        run(job, [asked])
    assert len(made) == 7
    assert not run(job, [asked]).steps[-1].details.get("measured")


def test_what_was_not_asked_for_changes_no_digest(evaluation_folder: Path) -> None:
    plain = step(evaluation_folder)
    assert set(plain.decides_by()) == {"step", "name", "against", "distance", "min_quality"}
    assert plain.decides_by() == step(evaluation_folder, measure=3).decides_by()
    assert plain.decides_by() != step(evaluation_folder, variants=True).decides_by()


def write_colours(path: Path) -> str:
    """Write a model that gives the mean colour of an image: a poor descriptor, but one that flips do not change."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["out"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 8, 8])
    graph = helper.make_graph(nodes, "c", [images], [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 3])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    path.write_bytes(model.SerializeToString())
    return str(path)


def test_embeddings_find_what_hashes_do_not_and_of_another_model_are_refused(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "faiss"):
        pytest.importorskip(package)
    config = CopyEmbeddingConfig(model=write_colours(tmp_path / "colours.onnx"), mean=(0.5,) * 3, std=(0.5,) * 3)
    model = open_image_model(config.model, config.input(), "copy_embedding")
    tints = ([255, 40, 40], [40, 255, 40], [40, 40, 255])
    pictures = [(draw(number) / 255 * tint).astype(np.uint8) for number, tint in enumerate(tints)]
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "red.png").write_bytes(encode(pictures[0]))
    cropped = crop(pictures[0], 0.5, down=0, right=0)
    rows = [
        {**image_row(number, encode(pixels)), "copy_embedding": descriptor(model, pixels)}
        for number, pixels in enumerate([pictures[0], cropped, *pictures[1:]])
    ]
    rows.append({**image_row(4, encode(draw(9))), "copy_embedding": None})
    job = write_job(tmp_path / "job", [rows])
    asked = step(folder, by_embedding=EmbeddingCheck(model=config, threshold=0.9))
    with pytest.raises(ValueError, match=r"by_embedding\.model is not the model of annotate\.copy_embedding"):
        run(job, [asked])
    assert not (tmp_path / "job" / "ledger").exists(), "the evaluation set was read before the refusal"
    made = tmp_path / "job" / "annotations" / "copy_embedding-00000000"
    made.rename(made.with_name(f"copy_embedding-{digest(CopyEmbedding(config))[:8]}"))
    summary = run(job, [asked]).steps[-1]
    assert [row["reason"] for row in ledger(job)] == [
        "evaluation:held-out",
        "evaluation-embedding:held-out",
        None,
        None,
        "no-embedding",
    ]
    assert ledger(job)[1]["value"] >= ledger(job)[1]["threshold"] == 0.9
    assert ledger(job)[1]["duplicate_of"] == "held-out/red.png"
    assert summary.details["measured"]["recall"]["crop 10 %"] == 1
    assert [row["kept"] for row in ledger(job)][:2] == [False, False]
