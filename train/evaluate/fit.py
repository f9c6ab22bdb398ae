"""Fitting heads on features: one step over all processes, and a state that a killed fit goes on from.

The statistics of BatchNorm are those of the whole batch, over all processes, exactly: they depend on the features
alone, so they are taken before any head reads, and a batch may then be read in parts.
"""

# S sets of blocks, R probes, B rows of this process, L tokens, D width, C classes

import json
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, distributed, nn
from torch.nn import functional

from headrace.atomic import atomic_file
from headrace.train.evaluate.labels import Labels
from headrace.train.evaluate.probe_config import ProbeConfig
from headrace.train.models.heads import Probes
from headrace.train.optim.lars import Lars
from headrace.train.parallel.ranks import Ranks
from headrace.train.runs.optimizer_state import make_state, optimizer_tensors, restore_optimizer
from headrace.train.runs.tensors import host_tensors, save_tensors

PART_BYTES = 1 << 29
"""What heads may take at once for the rows they read; the rest of a batch follows."""
NORM_ROWS = 1 << 16
NORM_MOMENTUM = 0.1
SGD_MOMENTUM = 0.9
TRUST_COEFFICIENT = 0.001
SAVE_SECONDS = 600.0
"""A fit whose epochs are longer is saved within them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FitBatch:
    """This process's rows of one step; there may be none."""

    sets: list[Tensor]
    """For each set of blocks [B, L, D] or [B, D]."""
    label_B: Tensor
    """int64."""


class Fit:
    """Heads, one of `Probes` for each set of blocks, and their optimizer."""

    def __init__(self, heads: list[Probes], config: ProbeConfig, *, steps_per_epoch: int, ranks: Ranks) -> None:
        self.heads, self.config, self.ranks = nn.ModuleList(heads).to(ranks.device), config, ranks
        self.steps_per_epoch, self.steps = steps_per_epoch, config.epochs * steps_per_epoch
        self.step = 0
        self.optimizer = _optimizer(self.probes, config)

    @property
    def probes(self) -> list[Probes]:
        """The heads of each set of blocks."""
        return [head for head in self.heads if isinstance(head, Probes)]

    def take_step(self, batch: FitBatch) -> None:
        """Move every probe by one step of all processes; one without samples moves nothing."""
        total = int(self.ranks.sum([len(batch.label_B)], "a probe's step")[0])
        if not total:  # of few samples in a large dataset some positions of the stream hold none
            self.step += 1
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(group["peak"])
        self.optimizer.zero_grad(set_to_none=True)
        for head, x in zip(self.probes, batch.sets, strict=True):
            self._add_gradients(head, x, batch.label_B, total)
            for number in range(head.num_probes):
                parameters = head.parameters_of(number)
                for parameter in parameters:
                    _sum_gradient(parameter, self.ranks)
                if self.config.clip_grad_norm:
                    torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_grad_norm)
        self.optimizer.step()
        self.step += 1

    def _add_gradients(self, head: Probes, x: Tensor, label_B: Tensor, total: int) -> None:
        mean_D, scale_D = self._normalise_by(head, x)
        for rows in _parts(head, x):
            logits_RBC = head.read((x[rows].float() - mean_D) * scale_D)
            label_RB = label_B[rows].expand(head.num_probes, -1)
            # Summed over probes: each one's gradient is then what it would be alone.
            loss = functional.cross_entropy(logits_RBC.flatten(0, 1), label_RB.flatten(), reduction="sum") / total
            torch.autograd.backward(loss)

    def _normalise_by(self, head: Probes, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what features are shifted and scaled by: moments of the batch, whose running averages are kept.

        Of heads without a norm 0 and 1.
        """
        norm = head.norm
        if not isinstance(norm, nn.BatchNorm1d):
            return x.new_zeros((), dtype=torch.float32), x.new_ones((), dtype=torch.float32)
        count, mean_D, var_D = batch_moments(x, self.ranks)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        unbiased_D = var_D * (count / max(1, count - 1))
        norm.running_mean.lerp_(mean_D, NORM_MOMENTUM)
        norm.running_var.lerp_(unbiased_D, NORM_MOMENTUM)
        norm.num_batches_tracked += 1
        return mean_D, (var_D + norm.eps).rsqrt()

    def _rate(self, peak: float) -> float:
        warmup = round(self.config.warmup_epochs * self.steps_per_epoch)
        if self.step < warmup:
            return peak * (self.step + 1) / warmup
        lowest = min(self.config.min_lr, peak)
        progress = (self.step - warmup) / (self.steps - warmup)
        return lowest + (peak - lowest) * (1 + math.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def count_right(self, rows: Iterable[tuple[list[Tensor], NDArray[np.int64]]], labels: Labels) -> "Judged":
        """Return what of all processes' rows each probe has right."""
        self.heads.eval()
        right_SR = torch.zeros(len(self.heads), self.probes[0].num_probes, dtype=torch.float64)
        samples, whole = 0, 0.0
        for sets, place_B in rows:
            samples += len(place_B)
            whole += float(labels.weights(place_B).sum())
            for which, (head, x) in enumerate(zip(self.probes, sets, strict=True)):
                for part in _parts(head, x):
                    right_SR[which] += labels.tally(head(x[part].to(self.ranks.device).float()), place_B[part])[0]
        flat = self.ranks.sum([*right_SR.flatten().tolist(), whole, samples], "a probe's accuracy")
        right_SR = torch.tensor(flat[:-2], dtype=torch.float64).view(right_SR.shape)
        return Judged((right_SR / (flat[-2] or 1.0)).tolist(), int(flat[-1]))


class Judged(NamedTuple):
    """How good probes are on some rows."""

    accuracy: list[list[float]]
    """Of each probe [S][R]."""
    samples: int
    """Rows that were judged."""


def batch_moments(x: Tensor, ranks: Ranks) -> tuple[int, Tensor, Tensor]:
    """Return the number of rows of all processes, their mean [D] and their biased variance [D], float32.

    In parts, whose moments are merged in float64 (Chan, Golub and LeVeque 1979).
    """
    rows, width = x.flatten(0, -2), x.shape[-1]
    count, mean_D, squares_D = 0, *torch.zeros(2, width, dtype=torch.float64, device=x.device)
    for part in torch.split(rows, NORM_ROWS) if len(rows) else ():
        var_D, part_D = torch.var_mean(part.float(), dim=0, correction=0)
        moved_D, merged = part_D.double() - mean_D, count + len(part)
        squares_D = squares_D + var_D.double() * len(part) + moved_D**2 * (count * len(part) / merged)
        mean_D, count = mean_D + moved_D * (len(part) / merged), merged
    if ranks.size > 1:
        summed = torch.cat([mean_D * count, mean_D.new_tensor([count])])
        distributed.all_reduce(summed)
        total = int(summed[-1])
        all_D = summed[:-1] / max(1, total)
        squares_D = squares_D + (mean_D - all_D) ** 2 * count
        distributed.all_reduce(squares_D)
        count, mean_D = total, all_D
    return count, mean_D.float(), (squares_D / max(1, count)).float()


def _sum_gradient(parameter: nn.Parameter, ranks: Ranks) -> None:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    if ranks.size > 1:
        distributed.all_reduce(parameter.grad)


def _parts(head: Probes, x: Tensor) -> Iterator[slice]:
    size = max(1, PART_BYTES // head.row_bytes(x.shape[1] if x.ndim == 3 else 1))
    for start in range(0, len(x), size):
        yield slice(start, start + size)


def _optimizer(heads: list[Probes], config: ProbeConfig) -> torch.optim.Optimizer:
    groups = []
    for head in heads:
        for number, (lr, decay) in enumerate(config.settings):
            named = head.named_parameters_of(number)
            decayed = [parameter for name, parameter in named.items() if name not in head.undecayed]
            others = [parameter for name, parameter in named.items() if name in head.undecayed]
            groups += [
                {"params": decayed, "lr": lr, "peak": lr, "weight_decay": decay, "decayed": True},
                {"params": others, "lr": lr, "peak": lr, "weight_decay": 0.0, "decayed": False},
            ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=SGD_MOMENTUM)
    if config.optimizer == "lars":
        return Lars(groups, momentum=SGD_MOMENTUM, trust_coefficient=TRUST_COEFFICIENT)
    return torch.optim.AdamW(groups)


class FitFile:
    """Where a fit is kept between its epochs, so that a killed one goes on; only rank 0 writes."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path, self._digest = path, digest
        self._saved = time.monotonic()

    def load_into(self, fit: Fit) -> None:
        """Continue what was saved. Another fit's file is left out with a warning, and later replaced."""
        step = self._read_step() if fit.ranks.is_first else 0
        # What rank 0 has read decides, as another may see an older file.
        step = fit.ranks.from_first(step, "continuing a probe")
        if not step:
            return
        tensors = load_file(self.path)
        model = {name.removeprefix("heads/"): tensor for name, tensor in tensors.items() if name.startswith("heads/")}
        moments = {name.removeprefix("moments/"): tensor for name, tensor in tensors.items() if name[0] == "m"}
        make_state(fit.optimizer)
        restore_optimizer(moments, fit.heads, fit.optimizer)
        fit.heads.load_state_dict(model)
        fit.step = step
        log.info("%s: the fit goes on at step %d of %d", self.path, step, fit.steps)

    def _read_step(self) -> int:
        if not self.path.exists():
            return 0
        try:
            with safe_open(str(self.path), "pt") as file:
                facts = json.loads((file.metadata() or {}).get("probe", "{}"))
        except (SafetensorError, ValueError) as error:
            log.warning("%s: cannot be read (%s); the fit begins anew", self.path, error)
            return 0
        if facts.get("digest") != self._digest:
            log.warning("%s: is of another probe; the fit begins anew", self.path)
            return 0
        return int(facts["step"])

    def save_when_due(self, fit: Fit) -> None:
        """Save at the end of an epoch, and every ten minutes of a long one."""
        due = fit.step % fit.steps_per_epoch == 0 or time.monotonic() - self._saved > SAVE_SECONDS
        if due and fit.ranks.is_first:
            tensors = {f"heads/{name}": tensor for name, tensor in fit.heads.state_dict().items()}
            tensors |= {f"moments/{name}": x for name, x in optimizer_tensors(fit.heads, fit.optimizer).items()}
            facts = {"probe": json.dumps({"digest": self._digest, "step": fit.step})}
            with atomic_file(str(self.path)) as path:
                save_tensors(path, host_tensors(tensors), facts)
            self._saved = time.monotonic()

    def remove(self, ranks: Ranks) -> None:
        """Remove the file of a fit that has been judged."""
        if ranks.is_first:
            self.path.unlink(missing_ok=True)
