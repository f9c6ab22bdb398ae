"""The step `blocklist`: nothing that is listed gets into a dataset, and the ledger does not say what it was."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from select_jobs import flip_bits, hash_bytes, ledger, make_row, run, write_job

from headrace.config import build_config
from headrace.curation.blocklist import BlocklistConfig
from headrace.curation.needs import check_needs, check_recipe
from headrace.curation.recipe import Recipe
from headrace.curation.select.steps.blocked import Blocked


def write(path: Path, *digests: str) -> tuple[str]:
    path.write_text("\n".join(digests) + "\n")
    return (str(path),)


def test_what_is_listed_is_dropped_without_its_url(tmp_path: Path) -> None:
    hashes = hash_bytes(np.random.default_rng(0), 8)
    rows = [make_row(number, pdq=code, pdq_trimmed=code) for number, code in enumerate(hashes)]
    rows[3]["pdq_trimmed"] = flip_bits(hashes[7], range(31))
    rows[4]["pdq"] = flip_bits(hashes[7], range(32))
    rows[5]["pdq"] = rows[5]["pdq_trimmed"] = None
    job = write_job(tmp_path / "job", [rows[:7]])
    listed = BlocklistConfig(
        sha256=write(tmp_path / "sha256", f"{1:064x}"),
        urls=write(tmp_path / "urls", hashlib.sha256(b"http://host/2").hexdigest()),
        pdq=write(tmp_path / "pdq", hashes[7].hex().upper()),
    )
    summary = run(job, [Blocked(files=listed)])
    (line,) = [step for step in summary.steps if step.name == "blocklist"]
    assert line.dropped == {"blocklisted": 3, "no-hash": 1}
    found = ledger(job)
    assert [row["kept"] for row in found] == [True, False, False, False, True, False, True]
    for row in found:
        hidden = not row["kept"]
        assert (row["url"] is None) == hidden
        assert (row["uid"] == hashlib.md5(row["key"].encode()).hexdigest()) == hidden
        assert row["value"] is None

    longer = run(job, [Blocked(files=listed)])
    assert longer.inputs == summary.inputs  # the same files: the same ledger
    write(tmp_path / "sha256", f"{1:064x}", f"{6:064x}")
    assert run(job, [Blocked(files=listed)]).kept == summary.kept - 1


def test_an_image_without_a_sum_cannot_be_cleared_by_sums(tmp_path: Path) -> None:
    rows = [make_row(number) for number in range(3)]
    rows[1]["sha256"] = None
    job = write_job(tmp_path / "job", [rows])
    run(job, [Blocked(files=BlocklistConfig(sha256=write(tmp_path / "sha256", "ff" * 32)))])
    assert [row["reason"] for row in ledger(job)] == [None, "no-hash", None]
    run(job, [Blocked(files=BlocklistConfig(urls=write(tmp_path / "urls", "00" * 32)))])
    assert [row["reason"] for row in ledger(job)] == [None, None, None]


def test_a_recipe_with_a_blocklist_begins_with_the_step(tmp_path: Path) -> None:
    listed = list(write(tmp_path / "pdq", "00" * 32))
    plain = {"job": "job", "unsafe_images": "off", "input": {"urls": ["list.csv"]}, "build": {"blur_faces": False}}
    rule = {"step": "rule", "name": "side", "keep": "image_width > 3"}
    recipe = build_config(Recipe, {**plain, "fetch": {"blocklist": {"pdq": listed}}, "select": [rule]})
    assert [step.name for step in recipe.steps] == ["blocklist", "side"]
    assert [step.name for step in build_config(Recipe, {**plain, "select": [rule]}).steps] == ["side"]
    check_needs(recipe, ["select"])
    check_recipe(recipe)
    write(tmp_path / "pdq", "00")
    with pytest.raises(ValueError, match="line 1"):
        check_needs(recipe, ["fetch"])
    bare = {**plain, "fetch": {"blocklist": {"pdq": listed}}, "annotate": {"hashes": None}}
    with pytest.raises(ValueError, match="pdq"):
        check_recipe(build_config(Recipe, bare))


@pytest.mark.parametrize("distance", [-1, 65])
def test_a_distance_that_means_nothing_is_refused(distance: int) -> None:
    with pytest.raises(ValueError, match="pdq_distance must be 0 to 64"):
        BlocklistConfig(pdq_distance=distance)
