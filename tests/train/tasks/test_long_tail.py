"""`headrace finetune --task longtail`: means over classes, splits by what training has, help for the rare."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from headrace.demo.scenes import draw_things, generator
from headrace.demo.truth_files import TRUTH_COLOURS
from headrace.shards.write import Sample, finish_dataset, write_shard
from headrace.train.config import RunConfig, run_digest
from headrace.train.evaluate.judge import split_accuracies
from headrace.train.objectives.balance import BETA, class_weights, log_shares
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.finetune import Finetune, FinetuneConfig
from headrace.train.objectives.supervised import SupervisedConfig
from tests.train.tasks.drawn import SMALL, TRUNK, finetune

COUNTS = (120, 30, 6)


@pytest.fixture(scope="session")
def tail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Datasets train, with 120, 30 and 6 pictures of three colours, and test, with 10 of each."""
    root = tmp_path_factory.mktemp("tail")
    for name, counts, seed in (("train", COUNTS, 1), ("test", (10, 10, 10), 2)):
        rows = []
        for number, label in enumerate(label for label, count in enumerate(counts) for _ in range(count)):
            rng = generator(seed, "tail", number)
            pixels, _ = draw_things(rng, width=64, height=64, colours=[TRUTH_COLOURS[label]])
            rows.append(Sample(f"{number:04d}", simplejpeg.encode_jpeg(pixels, quality=90), "jpg", {"label": label}))
        write_shard(str(root / name), "00000", rows)
        finish_dataset(str(root / name), recipe_digest="test", facts={"classes": list(TRUTH_COLOURS)})
    return root


def tuned(**changes: object) -> Finetune:
    config = FinetuneConfig(kind="finetune", of=SupervisedConfig(**TRUNK), num_classes=3, **changes)  # type: ignore[arg-type]
    objective = build_objective(config, image_size=64, seed=1)
    assert isinstance(objective, Finetune)
    return objective


def test_weights_are_those_of_the_effective_number_and_shares_those_of_the_set() -> None:
    weights = class_weights([*COUNTS, 0])
    by_hand = [(1 - BETA) / (1 - BETA**count) for count in COUNTS]
    assert weights[:3] / weights[0] == pytest.approx(np.array(by_hand) / by_hand[0])
    assert np.dot(weights[:3], COUNTS) / sum(COUNTS) == pytest.approx(1)
    assert weights[3] == 1
    assert np.exp(log_shares(COUNTS)) == pytest.approx(np.array(COUNTS) / sum(COUNTS))


@torch.no_grad()
@pytest.mark.parametrize("balance", ["effective", "logits"])
def test_the_loss_of_a_tail_is_the_slow_sum_and_validation_is_plain(balance: str) -> None:
    objective, plain = tuned(balance=balance, class_counts=COUNTS), tuned()
    torch.manual_seed(0)
    logits = torch.randn(4, 3)
    target = torch.eye(3)[torch.tensor([0, 1, 2, 2])]
    own = -(objective._weighed(target) * objective._shifted(logits).log_softmax(1)).sum(1)
    weights, shares = class_weights(COUNTS), log_shares(COUNTS)
    for row, label in enumerate([0, 1, 2, 2]):
        shifted = logits[row].double() + torch.from_numpy(shares) * (balance == "logits")
        weight = weights[label] if balance == "effective" else 1
        assert float(own[row]) == pytest.approx(-weight * float(shifted.log_softmax(0)[label]), rel=1e-5)
    objective.eval()
    assert torch.equal(objective._weighed(target), target)
    assert torch.equal(objective._shifted(logits), logits)
    assert plain._weight_C is None


def test_a_tail_without_its_counts_is_refused_and_older_runs_keep_their_digest() -> None:
    with pytest.raises(ValueError, match="class_counts must be a number of pictures of each of the 3 classes"):
        tuned(balance="logits", class_counts=(1, 2))
    with pytest.raises(ValueError, match="class_counts must be"):
        tuned(class_counts=(1, 2, 3))
    assert tuned().config.idle == ("balance", "class_counts")
    assert run_digest.__module__ == RunConfig.__module__


def test_splits_are_means_over_classes_by_what_training_has() -> None:
    right, seen = np.array([9, 1, 0, 5, 0]), np.array([10, 2, 4, 5, 0])
    splits = split_accuracies(right, seen, np.array([101, 100, 20, 19, 3]))
    assert splits["many"] == {"accuracy": 0.9, "classes": 1}
    assert splits["medium"] == {"accuracy": 0.25, "classes": 2}
    assert splits["few"] == {"accuracy": 1.0, "classes": 1}, "a class without a test picture is in no mean"
    assert split_accuracies(right, seen, np.full(5, 50))["few"] == {"accuracy": None, "classes": 0}


@pytest.mark.full
def test_a_trained_trunk_beats_an_untrained_one(knowing: Path, tail: Path, tmp_path: Path) -> None:
    words = [knowing, "--task", "longtail", "--train", tail / "train", "--test", tail / "test", *SMALL]
    words += [
        "--batch",
        16,
        "--epochs",
        4,
        "--balance",
        "logits",
        "optimizer.lr=0.001",
        "mixture.augment.scale=[0.5,1.0]",
        "mixture.augment.rand_augment=null",  # the classes are colours, and it changes them
    ]
    said = finetune(*words, "--out", tmp_path / "trained")
    pattern = r"mean_per_class [01]\.\d+, many [01]\.\d+ \(1 classes\), medium [01]\.\d+ \(1 classes\), few"
    assert re.search(pattern, said)
    finetune(*words, "--out", tmp_path / "fresh", "--untrained")
    trained, fresh = (json.loads((tmp_path / n / "finetune.json").read_text()) for n in ("trained", "fresh"))
    assert trained["metric"] == "mean_per_class"
    mean = np.mean([one["accuracy"] for one in trained["splits"].values()])
    assert trained["accuracy"] == pytest.approx(mean, abs=1e-5), "ten test pictures of each class"
    assert trained["accuracy"] > fresh["accuracy"], f"{trained} against {fresh}"


def test_options_of_other_tasks_are_refused(young: Path, tail: Path, tmp_path: Path) -> None:
    data = ["--train", tail / "train", "--test", tail / "test", "--out", tmp_path / "a"]
    for words, message in (
        (["--task", "fly"], "--task: unknown 'fly'; known: classify, longtail, segment, detect"),
        (["--recipe", "study-segment"], "--recipe study-segment is not for --task classify; those are: mae-base,"),
        (["--task", "segment", "--balance", "logits"], "--balance is for --task longtail and classify, not segment"),
        (["--packed", "x"], "--train-annotations, --test-annotations and --packed are for segment, detect"),
        (
            ["--task", "detect", "--metric", "mean_per_class"],
            "--ground-truth, --class-subset and --metric are of classes",
        ),
        (["--reduce-zero-label"], "--reduce-zero-label, --ignore-label and --mask-sizes are for --task segment"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            finetune(young, *data, *words)
