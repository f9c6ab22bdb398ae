"""`headrace probe`: what a frozen trunk knows of classes it was never told.

The trunk is not changed, and the test set decides nothing: learning rate and weight decay are chosen on a held-out
tenth of the training set. Published tables take the best on the test set; `by_lr` has those numbers too.
"""

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.config import canonical_json
from headrace.shards.dataset import open_dataset
from headrace.shards.permutation import make_key
from headrace.text import known_words, without_secrets
from headrace.train.evaluate.feature_cache import open_cache
from headrace.train.evaluate.features import FeaturesConfig, dataset_features
from headrace.train.evaluate.feeds import Feed, MemoryStore, Rows, StoredFeed, stored_rows
from headrace.train.evaluate.fit import Fit, FitFile
from headrace.train.evaluate.ground_truth import read_ground_truth
from headrace.train.evaluate.labels import Labels, read_dataset_labels
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.evaluate.trunk import FrozenTrunk, open_trunk, read_layers
from headrace.train.evaluate.trunk_feed import TrunkFeed, streamed_rows
from headrace.train.models.encoder import Encoder, EncoderShape
from headrace.train.models.heads import AttentiveProbes, LinearProbes, Probes
from headrace.train.parallel.ranks import Ranks, join_ranks
from headrace.train.runs.released import check_released_names, write_released

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeTask:
    """Everything that one head is asked for."""

    trunk: FrozenTrunk
    config: ProbeConfig
    ranks: Ranks
    train: Labels
    test: Labels
    cache: Path | None = None
    """Folder for features on disk; None = they are held in memory, or made in every epoch."""
    work: Path | None = None
    """Folder for what a killed fit goes on from; None = nothing is kept."""
    export: Path | None = None
    """Folder for the trunk with the chosen probe, in the form of the released models."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks whose mean is probed."""
        return read_layers(self.config.layers, self.trunk.encoder)


ProbeKind = Callable[[ProbeTask], dict[str, Any]]
"""Called on all ranks; returns `accuracy` and whatever else of it is to be known, as JSON-able data."""


def _attentive(trunk: EncoderShape, classes: int, num_probes: int) -> Probes:
    return AttentiveProbes(width=trunk.width, heads=trunk.heads, classes=classes, num_probes=num_probes)


def _linear(trunk: EncoderShape, classes: int, num_probes: int) -> Probes:
    return LinearProbes(width=trunk.width, classes=classes, num_probes=num_probes)


FITTED: dict[str, Callable[[EncoderShape, int, int], Probes]] = {"attentive": _attentive, "linear": _linear}
"""Heads that are fitted by gradients: of a trunk's sizes, a number of classes, and how many to fit."""
POOLED = ("linear", "knn", "few-shot")
"""Those that read the average over an image's tokens."""


def fitted_probe(task: ProbeTask) -> dict[str, Any]:
    """Fit heads of the config's kind, choose on the held-out tenth, and judge on the test set."""
    config, ranks = task.config, task.ranks
    features = features_of(task)
    kind, feed = _choose_feed(task, features)
    fit = Fit(_fresh_heads(task, features), config, steps_per_epoch=feed.steps_per_epoch, ranks=ranks)
    file = None if task.work is None else FitFile(*_fit_place(task, task.work, kind))
    if file is not None:
        file.load_into(fit)
    for batch in feed.batches(fit.step, fit.steps):
        fit.heads.train()
        fit.take_step(batch)
        if file is not None:
            file.save_when_due(fit)
        if ranks.is_first and fit.step % fit.steps_per_epoch == 0:
            log.info("probe: epoch %d of %d", fit.step // fit.steps_per_epoch, config.epochs)
    held = fit.count_right(feed.held(), task.train)
    test = fit.count_right(_test_rows(task, features), task.test)
    if not held.samples or not test.samples:
        raise ValueError(f"{(task.train if not held.samples else task.test).url}: no sample is left to judge on")
    tables = [_table(config, *of_both) for of_both in zip(held.accuracy, test.accuracy, strict=True)]
    best = [max(table, key=lambda row: row["holdout_accuracy"]) for table in tables]
    if task.export is not None and ranks.is_first:
        probes = fit.probes[0]
        assert isinstance(probes, AttentiveProbes), "checked before the fit"
        number = tables[0].index(best[0])
        write_released(task.export, task.trunk.encoder, probes, number=number, blocks=task.layers)
    if file is not None:
        file.remove(ranks)
    rows = [{"blocks": list(layers), **row} for layers, row in zip(features.layer_sets, best, strict=True)]
    return {
        "accuracy": best[0]["test_accuracy"],
        "lr": best[0]["lr"],
        "weight_decay": best[0]["weight_decay"],
        "by_lr": tables[0],
        **({"by_depth": rows[1:]} if config.sweep_depth else {}),
        "classes": task.train.classes,
        "train_samples": feed.num_samples,
        "test_samples": test.samples,
        "left_out": task.test.left_out,
        "features": kind,
    }


def _knn(task: ProbeTask) -> dict[str, Any]:
    from headrace.train.evaluate.closed_probes import knn_probe  # it needs what is above

    return knn_probe(task)


def _few_shot(task: ProbeTask) -> dict[str, Any]:
    from headrace.train.evaluate.closed_probes import few_shot_probe

    return few_shot_probe(task)


PROBES: dict[str, ProbeKind] = {
    "attentive": fitted_probe,
    "linear": fitted_probe,
    "knn": _knn,
    "few-shot": _few_shot,
}
"""What `headrace probe --head` knows."""


def probe(
    checkpoint: Path,
    config: ProbeConfig,
    *,
    device: str = "auto",
    export: Path | None = None,
    cache: Path | None = None,
    work: Path | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Judge the frozen trunk of `checkpoint` by the config's head; return accuracies and protocol as JSON-able data.

    `checkpoint` is a run folder, a checkpoint in it, an exported `model.safetensors`, or a released one of AIM. Into
    the folder `export` the trunk is written with the chosen probe, in the form of the released models. In `cache`
    features are kept, in `work` the state of a fit. Under torchrun every process is called, and returns the same;
    who judges several times there joins once, and gives its `ranks`.
    """
    kind = probe_kind(config.head)
    with contextlib.nullcontext(ranks) if ranks is not None else join_ranks(device) as ranks:
        trunk = open_trunk(checkpoint, untrained=config.untrained, device=ranks.device)
        if export is not None:
            check_export(trunk, config)
        train, test = probe_labels(config)
        task = ProbeTask(
            trunk=trunk, config=config, ranks=ranks, train=train, test=test, cache=cache, work=work, export=export
        )
        result = kind(task)
    return {
        **result,
        "checkpoint": str(checkpoint),
        "step": trunk.step,
        "seed_of_run": trunk.model.seed,
        "blocks": list(task.layers),
        "protocol": {
            name: without_secrets(value) if isinstance(value, str) else value for name, value in asdict(config).items()
        },
    }


def probe_labels(config: ProbeConfig) -> tuple[Labels, Labels]:
    """Return what is fitted on and what is right in the test set. Raises ValueError for a sample without label.

    From the indexes: a mistake in the test set must not be found after an hour over the training set.
    """
    train = read_dataset_labels(config.train, config.samples)
    return train, read_ground_truth(config.test, config.truth, num_classes=train.classes)


def probe_kind(name: str) -> ProbeKind:
    """Return a head by name. Raises ValueError for an unknown one."""
    if name not in PROBES:
        raise ValueError(f"head: unknown {name!r}; {known_words(name, PROBES)}")
    return PROBES[name]


def check_export(trunk: FrozenTrunk, config: ProbeConfig) -> None:
    """Raise ValueError if the result cannot be written in the form of the released models."""
    if config.head != "attentive":
        raise ValueError(f"the released models have an attentive head, --head is {config.head}; leave --export out")
    check_released_names(trunk.encoder)


def features_of(task: ProbeTask) -> FeaturesConfig:
    """Return which features the config's head reads."""
    config = task.config
    return FeaturesConfig(
        layers=task.layers,
        more_layers=feature_layers(config, task.trunk.encoder),
        pooled=config.head in POOLED,
        samples=config.samples,
        memory_bytes=config.memory_bytes * task.ranks.size,
        crop=config.crop,
        center_fraction=config.center_fraction,
        interpolation=config.interpolation,
        images_per_batch=config.images_per_forward,
    )


def feature_layers(config: ProbeConfig, encoder: Encoder) -> tuple[tuple[int, ...], ...]:
    """Return the sets of blocks that are probed beside `layers`: each block alone in a sweep."""
    return tuple((block,) for block in read_layers("all", encoder)) if config.sweep_depth else ()


def _choose_feed(task: ProbeTask, features: FeaturesConfig) -> tuple[str, Feed]:
    """Return where features come from, by name too: memory, cache or trunk; said in one line of the log."""
    config, ranks, trunk = task.config, task.ranks, task.trunk
    kind, why = choose_place(
        task.config, features.num_bytes(trunk.encoder.shape, len(task.train)), cache=task.cache, processes=ranks.size
    )
    if ranks.is_first:
        log.info("features of %s: %s", config.train, why)
    if kind == "trunk":
        return kind, TrunkFeed(trunk, task.train, config, features=features, ranks=ranks)
    if task.cache is not None:
        return kind, StoredFeed(open_cache(task.cache, trunk, config.train, features, ranks), task.train, config, ranks)
    held = dataset_features(trunk, config.train, config=features, ranks=ranks)
    return kind, StoredFeed(MemoryStore(held, len(task.train), ranks), task.train, config, ranks)


def choose_place(config: ProbeConfig, num_bytes: int, *, cache: Path | None, processes: int) -> tuple[str, str]:
    """Return where features of so many bytes are kept, and why. Raises ValueError for crops with a cache."""
    size = f"{num_bytes:,} bytes"
    if config.augment != "none":
        if cache is not None:
            raise ValueError(
                f"augment {config.augment} sees other crops in every epoch, which no cache holds; give one"
            )
        return "trunk", f"the trunk runs in every epoch, as each has its own crops (augment {config.augment})"
    if cache is not None:
        return "cache", f"{size} in the cache {cache}"
    if num_bytes <= config.memory_bytes * processes:
        return "memory", f"{size} in memory, memory_bytes is {config.memory_bytes:,}"
    return "trunk", (
        f"the trunk runs in every epoch, as {size} are over memory_bytes {config.memory_bytes:,}; "
        "with --cache DIR it runs once"
    )


def _test_rows(task: ProbeTask, features: FeaturesConfig) -> Iterator[Rows]:
    wanted = dataclasses.replace(features, samples=0)
    if task.cache is None or task.config.augment != "none":
        return streamed_rows(task.trunk, task.test, wanted, task.ranks)
    store = open_cache(task.cache, task.trunk, task.test.url, wanted, task.ranks)
    place_N = np.flatnonzero(store.has_N & (task.test.label_N >= 0))
    return stored_rows(store, place_N, features.images_per_batch)


def _fresh_heads(task: ProbeTask, features: FeaturesConfig) -> list[Probes]:
    heads = []
    for _ in features.layer_sets:
        # The same first weights for each set, so that a sweep changes nothing of the rest.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(make_key(task.config.seed, "probe"))
            make = FITTED[task.config.head]
            probes = make(task.trunk.encoder.shape, task.train.classes, len(task.config.settings))
            heads.append(probes.without_norm() if task.config.norm == "none" else probes)
    return heads


def _fit_place(task: ProbeTask, work: Path, kind: str) -> tuple[Path, str]:
    """Return where the fit is kept, and the digest of all that decides it, but for the number of processes."""
    told = task.config.told
    if told["norm"] == "batch":
        del told["norm"]  # a fit of before it could be chosen goes on
    # They change nothing of the fit, or by rounding.
    for name in ("memory_bytes", "images_per_forward", "train", "test", "metric", "ground_truth", "class_subset"):
        del told[name]
    datasets = [open_dataset(labels.url).shards.digest() for labels in (task.train, task.test)]
    labels = [hashlib.sha256(labels.label_N.tobytes()).hexdigest() for labels in (task.train, task.test)]
    text = canonical_json([told, task.trunk.digest(), datasets, labels, kind])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return work / f".probe-{digest[:16]}.safetensors", digest


def _table(config: ProbeConfig, held: list[float], test: list[float]) -> list[dict[str, float]]:
    return [
        {"lr": lr, "weight_decay": decay, "holdout_accuracy": round(a, 6), "test_accuracy": round(b, 6)}
        for (lr, decay), a, b in zip(config.settings, held, test, strict=True)
    ]
