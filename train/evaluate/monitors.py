"""What the trunk of a run knows while it trains: classes told from its frozen features, every so many steps.

A monitor looks and changes nothing: no weight, no generator, no mode of a module. If it fails, on any rank, all ranks
leave it together, a line says why, and the run goes on; what the forward pass of a spread model needs of the other
ranks is asked for only after all have said that they have their images.
"""

# B batch, L patches, D width, N samples

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from headrace.pipeline import Mixture, Stream, open_stream
from headrace.text import one_line
from headrace.train.config import RunConfig
from headrace.train.evaluate.features import read_labels
from headrace.train.evaluate.few_shot import PUBLISHED_L2, FewShotConfig, few_shot_accuracies, fit_ridge
from headrace.train.evaluate.knn import QUERY_ROWS, KnnConfig, knn_classes
from headrace.train.evaluate.monitor_config import MonitorConfig
from headrace.train.evaluate.passes import sampled
from headrace.train.evaluate.trunk import END, mean_of_blocks, read_layers
from headrace.train.models.encoder import Encoder
from headrace.train.objectives.objective import Objective
from headrace.train.parallel.precision import autocast
from headrace.train.parallel.ranks import RankError, Ranks
from headrace.train.parallel.strategy import drop_gathered

LINEAR_L2S = (2.0**-4, 1.0, 2.0**4, 2.0**8, 2.0**12)
SHOTS = 10

log = logging.getLogger(__name__)


class MonitorError(ValueError):
    """A monitor failed on some rank; raised on all of them."""


class _StoppingError(Exception):
    """A signal asked the run to stop; raised on all ranks."""


class LabelledSet(NamedTuple):
    """Pooled features of one dataset, the same on all ranks."""

    features_ND: Tensor
    """float32, on the CPU, in the order of the dataset."""
    label_N: Tensor
    """int64."""
    damaged: int
    """Samples that are left out."""


@dataclass(slots=True)
class SharedSets:
    """Features that several monitors of one step look at: they go through the trunk once."""

    step: int = -1
    sets: dict[tuple[Any, ...], LabelledSet] = field(default_factory=dict)

    def begin(self, step: int) -> None:
        """Forget the features of other weights than those of `step`."""
        if step != self.step:
            self.step, self.sets = step, {}

    def keep_for(self, monitors: Sequence[MonitorConfig]) -> None:
        """Forget what none of `monitors` is to read."""
        wanted = {_key(config, url) for config in monitors for url in (config.train, config.test)}
        self.sets = {key: held for key, held in self.sets.items() if key in wanted}


def _key(config: MonitorConfig, url: str) -> tuple[Any, ...]:
    return (url, config.samples, config.layers, config.pooling, config.labels, config.crop, config.center_fraction)


def monitor_values(
    config: MonitorConfig, run: RunConfig, objective: Objective, *, step: int, shared: SharedSets, ranks: Ranks
) -> Mapping[str, Any] | None:
    """Return what a line of metrics says: the accuracy, or the error; None where the run is asked to stop meanwhile.

    Called on all ranks.
    """
    shared.begin(step)
    values = _values(config, run, objective, shared=shared, ranks=ranks)
    later = run.monitors[run.monitors.index(config) + 1 :]
    shared.keep_for([other for other in later if step == run.total_steps or step % other.every == 0])
    return values


def _values(
    config: MonitorConfig, run: RunConfig, objective: Objective, *, shared: SharedSets, ranks: Ranks
) -> Mapping[str, Any] | None:
    began = time.perf_counter()
    try:
        with _only_looking(objective, ranks.device):
            for url in (config.train, config.test):
                if _key(config, url) not in shared.sets:
                    shared.sets[_key(config, url)] = _labelled_set(objective, run, config, url, ranks)
            train, test = (shared.sets[_key(config, url)] for url in (config.train, config.test))
            read = time.perf_counter() - began
            accuracy = _accuracy(train, test, config, ranks)
    except _StoppingError:
        log.warning("monitor %s is broken off: the run is asked to stop", config.called)
        return None
    except MonitorError as error:
        log.warning("monitor %s: %s; training goes on", config.called, error)
        return {"error": str(error), "seconds": round(time.perf_counter() - began, 3)}
    seconds = time.perf_counter() - began
    if ranks.is_first:
        log.info("monitor %s: accuracy %.4f, %.1f s", config.called, accuracy, seconds)
    values = {"accuracy": accuracy, "seconds": round(seconds, 3), "seconds_features": round(read, 3)}
    counts = {"train_samples": len(train.label_N), "test_samples": len(test.label_N)}
    damaged = train.damaged + test.damaged
    return values | counts | ({"damaged_samples": damaged} if damaged else {})


def check_monitors(objective: Objective, run: RunConfig) -> None:
    """Raise ValueError naming the monitor that could not look: a dataset, its labels, the trunk, its layers."""
    for config in run.monitors:
        where = f"monitors, {config.called}"
        if objective.trunk is None:
            raise ValueError(f"{where}: an objective {run.objective.kind} has no trunk that monitors read")
        try:
            read_layers(config.layers, objective.trunk)
            for url in (config.train, config.test):
                with _opened(run, config, url, global_batch=1) as stream:
                    _check_labels(stream, config, url)
        except (ValueError, OSError) as error:
            raise ValueError(f"{where}: {error}") from error


def _check_labels(stream: Stream, config: MonitorConfig, url: str) -> None:
    (source,) = stream.sources
    if not source.num_samples:
        raise ValueError(f"{url} has no samples")
    if config.labels is None:
        labels = source.first_rows().columns["label"].to_numpy(zero_copy_only=False)
        read_labels(labels, labels == labels, url)


def _opened(
    run: RunConfig, config: MonitorConfig, url: str, *, global_batch: int, rank: int = 0, world_size: int = 1
) -> Stream:
    mixture: Mixture = sampled(
        run.mixture,
        url,
        samples=config.samples,
        crop=config.crop,
        center_fraction=config.center_fraction,
        labels=config.labels,
    )
    return open_stream(
        mixture, global_batch=global_batch, rank=rank, world_size=world_size, columns=("label",), once=True
    )


@contextlib.contextmanager
def _only_looking(objective: Objective, device: torch.device) -> Iterator[None]:
    """Let nothing of what happens in this context be seen by the next step."""
    modes = [(module, module.training) for module in objective.modules()]
    devices = [device] if device.type == "cuda" else []
    objective.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        drop_gathered(objective)
        for module, training in modes:
            module.training = training


def _labelled_set(objective: Objective, run: RunConfig, config: MonitorConfig, url: str, ranks: Ranks) -> LabelledSet:
    """Run a dataset through the trunk, each rank its share, and return all of it on every rank."""
    where = f"monitor {config.called}"
    with contextlib.ExitStack() as stack:
        with _together(ranks, where):
            stream = stack.enter_context(
                _opened(run, config, url, global_batch=run.global_batch, rank=ranks.rank, world_size=ranks.size)
            )
            assert objective.trunk is not None, "check_monitors has looked"
            layers = read_layers(config.layers, objective.trunk)
        parts = []
        for _ in range(math.ceil(stream.sources[0].num_samples / run.global_batch)):
            with _together(ranks, where):
                batch = next(stream)
                label_B = torch.full((len(batch.valid),), -1)
                if batch.valid.any():
                    label_B[torch.from_numpy(batch.valid)] = read_labels(batch.columns["label"], batch.valid, url)
            with _together(ranks, where):  # on its own: a spread model asks the others for weights in here
                pooled_BD = _pooled(objective, run, batch.images, layers=layers, config=config, device=ranks.device)
            parts.append((pooled_BD.cpu(), label_B, torch.from_numpy(batch.position)))
    own = [torch.cat(column) for column in zip(*parts, strict=True)]
    features_ND, label_N, place_N = (ranks.all_rows(tensor, where) for tensor in own)
    inside_N = place_N < stream.sources[0].num_samples  # a finite pass is padded at its end
    with _together(ranks, where):
        whole_N = (label_N >= 0) & inside_N
        order = place_N[whole_N].argsort()
        features_ND, label_N = features_ND[whole_N][order], label_N[whole_N][order]
        if not len(label_N):
            raise ValueError(f"{url}: every sample is damaged")
        if not bool(torch.isfinite(features_ND).all()):
            raise ValueError(f"{url}: features are not finite")
    return LabelledSet(features_ND, label_N, int(inside_N.sum()) - len(label_N))


def _pooled(
    objective: Objective,
    run: RunConfig,
    images: Any,
    *,
    layers: tuple[int, ...],
    config: MonitorConfig,
    device: torch.device,
) -> Tensor:
    """Return [B, D] in float32, in parts as large as those of a step."""

    def read(trunk: Encoder, images_B3HH: Tensor) -> Tensor:
        if layers == END:
            return trunk.pooled(images_B3HH).float()
        tokens_BLD = mean_of_blocks(trunk, images_B3HH, layers).float()
        return tokens_BLD.amax(dim=1) if config.pooling == "max" else trunk.pool(tokens_BLD)

    size = run.images_per_micro_batch or len(images)
    with autocast(run.precision, device):
        parts = [objective.through_trunk(images[start : start + size], read) for start in range(0, len(images), size)]
    return torch.cat(parts)


def _accuracy(train: LabelledSet, test: LabelledSet, config: MonitorConfig, ranks: Ranks) -> float:
    """Return the share of the test set that is told right; each rank does its part of the work."""
    with _together(ranks, f"monitor {config.called}"):
        right, asked = HEADS[config.kind](train, test, ranks)
    rights, all_asked = ranks.sum([right, asked], f"monitor {config.called}")
    return round(rights / all_asked, 6)


def _knn(train: LabelledSet, test: LabelledSet, ranks: Ranks) -> tuple[float, float]:
    right = asked = 0
    for start in range(ranks.rank * QUERY_ROWS, len(test.label_N), ranks.size * QUERY_ROWS):
        part = slice(start, start + QUERY_ROWS)
        told = knn_classes(train.features_ND, train.label_N, test.features_ND[part], KnnConfig(), device=ranks.device)
        right += int((told == test.label_N[part]).sum())
        asked += len(told)
    return float(right), float(asked)


def _linear(train: LabelledSet, test: LabelledSet, ranks: Ranks) -> tuple[float, float]:
    if not ranks.is_first:  # one decomposition, which cannot be shared
        return 0.0, 0.0
    classes = int(train.label_N.max()) + 1
    ridge = fit_ridge(train.features_ND, train.label_N, classes=classes, device=ranks.device)
    chosen = max(reversed(LINEAR_L2S), key=ridge.left_out_accuracy)
    return ridge.accuracy(test.features_ND, test.label_N, chosen), 1.0


def _few_shot(train: LabelledSet, test: LabelledSet, ranks: Ranks) -> tuple[float, float]:
    config = FewShotConfig(shots=(SHOTS,), l2s=(PUBLISHED_L2,))
    rows = few_shot_accuracies(train[:2], test[:2], config, device=ranks.device, part=(ranks.rank, ranks.size))
    return math.fsum(row["test_accuracy"] for row in rows), float(len(rows))


HEADS: dict[str, Callable[[LabelledSet, LabelledSet, Ranks], tuple[float, float]]] = {
    "knn": _knn,
    "linear": _linear,
    "few_shot": _few_shot,
}
"""What each rank computes: how much is right, of how much."""


@contextlib.contextmanager
def _together(ranks: Ranks, where: str) -> Iterator[None]:
    """Let all ranks leave this context in the same way: on, or out of the monitor because one of them has to."""
    failure: Exception | None = None
    try:
        yield
    except RankError:
        raise
    except (ValueError, OSError, torch.OutOfMemoryError, LinAlgError) as error:
        failure = error
    failed, stopping = ranks.sum([failure is not None, bool(ranks.stop)], where)
    if failed:
        own = "" if failure is None else one_line(str(failure)) or type(failure).__name__
        raise MonitorError(next(text for text in ranks.gathered(own, where) if text)) from failure
    if stopping:
        raise _StoppingError
