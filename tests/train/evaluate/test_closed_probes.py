"""kNN and few shots as heads of a probe: the numbers of the plain computation, on any number of processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.train.config import load_run
from headrace.train.evaluate import closed_probes
from headrace.train.evaluate.features import FeaturesConfig, dataset_features
from headrace.train.evaluate.few_shot import FewShotConfig, few_shot_accuracies
from headrace.train.evaluate.ground_truth import GroundTruthConfig
from headrace.train.evaluate.knn import KnnConfig, knn_classes
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.evaluate.probes import ProbeTask, features_of, probe, probe_labels
from headrace.train.evaluate.trunk import open_trunk
from headrace.train.loop import train
from headrace.train.parallel.ranks import Ranks
from tests.ports import free_port

SHARED = """
import json, sys
from pathlib import Path
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.evaluate.probes import probe
import os

for head in ("knn", "few-shot"):
    config = ProbeConfig(train=sys.argv[2], test=sys.argv[3], head=head, images_per_forward=16)
    result = probe(Path(sys.argv[1]), config, device="cpu")
    os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
    Path(f"{sys.argv[4]}-{head}-{os.environ['RANK']}").write_text(json.dumps(result))
"""


@pytest.fixture
def run(run_file: Callable[..., Path]) -> Path:
    return train(load_run(run_file(steps=3, validation=None))).out


def config_of(head: str, pictures: str, other_pictures: str, **given: Any) -> ProbeConfig:
    return ProbeConfig(train=pictures, test=other_pictures, head=head, images_per_forward=16, **given)


def pooled(run: Path, url: str) -> tuple[torch.Tensor, torch.Tensor]:
    config = FeaturesConfig(layers=(0, 1), pooled=True, images_per_batch=16)
    features = dataset_features(open_trunk(run), url, config=config)
    return features.tokens_NLD, features.label_N


def test_neighbours_are_those_of_the_features(run: Path, pictures: str, other_pictures: str, tmp_path: Path) -> None:
    config = config_of("knn", pictures, other_pictures)
    result = probe(run, config, device="cpu")
    bank, asked = pooled(run, pictures), pooled(run, other_pictures)
    for row in result["by_k"]:
        told = knn_classes(*bank, asked[0], KnnConfig(k=row["k"]))
        assert row["test_accuracy"] == pytest.approx(float((told == asked[1]).double().mean()), abs=1e-6)
    assert [row["k"] for row in result["by_k"]] == [10, 20]  # of 96 samples
    assert result["accuracy"] == result["by_k"][1]["test_accuracy"] > 0.8
    assert (result["train_samples"], result["test_samples"], result["classes"]) == (96, 45, 3)
    cached = probe(run, config, device="cpu", cache=tmp_path / "cache")
    assert cached == result | {"features": "cache"}
    json.dumps(result)


def test_few_shots_are_those_of_the_evaluator(run: Path, pictures: str, other_pictures: str) -> None:
    result = probe(run, config_of("few-shot", pictures, other_pictures), device="cpu")
    rows = few_shot_accuracies(pooled(run, pictures), pooled(run, other_pictures), FewShotConfig())
    for row in result["by_shots"]:
        of_seeds = [each for each in rows if each["shots"] == row["shots"]]
        assert row["by_seed"] == pytest.approx([each["test_accuracy"] for each in of_seeds], abs=0.05)
        published = sum(each["published_l2_test_accuracy"] for each in of_seeds) / 3
        assert row["published_l2_test_accuracy"] == pytest.approx(published, abs=0.05)
    assert [row["shots"] for row in result["by_shots"]] == [1, 5, 10, 25]  # big_vision's
    assert result["accuracy"] == result["by_shots"][2]["published_l2_test_accuracy"] > 0.8
    assert result["train_samples"] <= 96


@pytest.mark.parametrize("head", ["knn", "few-shot"])
def test_a_sweep_has_a_row_for_each_block(run: Path, pictures: str, other_pictures: str, head: str) -> None:
    result = probe(run, config_of(head, pictures, other_pictures, sweep_depth=True), device="cpu")
    assert [row["blocks"] for row in result["by_depth"]] == [[0], [1]]
    alone = probe(run, config_of(head, pictures, other_pictures, layers="1"), device="cpu")
    assert result["by_depth"][1]["test_accuracy"] == pytest.approx(alone["accuracy"], abs=0.03)


@pytest.mark.parametrize("head", ["knn", "few-shot"])
def test_a_subset_of_classes_is_chosen_among(
    run: Path, pictures: str, write_dataset: Callable[..., str], tmp_path: Path, head: str
) -> None:
    """The test set knows red and blue alone, as its own classes 0 and 1."""
    url = write_dataset(
        tmp_path / "two",
        samples=30,
        first=999,
        change=lambda number, columns: columns | {"label": number % 3 // 2},
    )
    (tmp_path / "subset.json").write_text("[0, 2]")
    truth = {"class_subset": str(tmp_path / "subset.json")}
    result = probe(run, config_of(head, pictures, url, **truth), device="cpu")
    assert isinstance(config_of(head, pictures, url, **truth).truth, GroundTruthConfig)
    assert result["accuracy"] > 0.6  # among all three blue would be 2, not 1
    assert result["test_samples"] == 30


def test_features_that_do_not_fit_are_refused(run: Path, pictures: str, other_pictures: str) -> None:
    with pytest.raises(ValueError, match=r"take 3072 bytes, over memory_bytes 3000"):
        probe(run, config_of("knn", pictures, other_pictures, memory_bytes=3000), device="cpu")


def test_what_each_process_holds_whole_is_bounded_in_each(run: Path, pictures: str, other_pictures: str) -> None:
    """The test set takes 1,440 bytes in both of two processes, not 720."""
    config = config_of("knn", pictures, other_pictures, memory_bytes=1000)
    train, test = probe_labels(config)
    ranks = Ranks(rank=0, size=2, device=torch.device("cpu"))
    task = ProbeTask(trunk=open_trunk(run), config=config, ranks=ranks, train=train, test=test)
    with pytest.raises(ValueError, match=r"take 1440 bytes, over memory_bytes 1000"):
        closed_probes._test(task, features_of(task))


@pytest.mark.cuda
def test_heads_without_steps_read_features_of_a_gpu(run: Path, pictures: str, other_pictures: str) -> None:
    for head in ("knn", "few-shot"):
        assert probe(run, config_of(head, pictures, other_pictures), device="cuda")["accuracy"] > 0.8


def test_two_processes_have_the_numbers_of_one(run: Path, pictures: str, other_pictures: str, tmp_path: Path) -> None:
    environment = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", SHARED, str(run), pictures, other_pictures, str(tmp_path / "of")]
    running = [
        subprocess.Popen(
            command, env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    for head in ("knn", "few-shot"):
        expected = probe(run, config_of(head, pictures, other_pictures), device="cpu")
        for rank in "01":
            assert json.loads((tmp_path / f"of-{head}-{rank}").read_text()) == json.loads(json.dumps(expected))


def test_votes_are_summed_in_blocks(
    run: Path, pictures: str, other_pictures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("knn", pictures, other_pictures)
    expected = probe(run, config, device="cpu")
    monkeypatch.setattr(closed_probes, "QUERY_ROWS", 7)
    monkeypatch.setattr(closed_probes, "VOTE_BYTES", 1)
    assert probe(run, config, device="cpu") == expected
