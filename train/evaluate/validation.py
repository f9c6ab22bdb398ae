"""The loss on images that are not trained on: the compass of a run.

The same number at any world size up to rounding, as samples, crops and prefixes are functions of (seed, place in the
pass). A finite pass is padded at its end; padded rows are in the batch, not in the loss.
"""

import contextlib
import logging
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from headrace.pipeline import Batch, open_stream
from headrace.text import shown
from headrace.train.batches import first_samples, micro_batches
from headrace.train.config import RunConfig
from headrace.train.evaluate.passes import same_reading
from headrace.train.objectives.objective import Objective, RowError
from headrace.train.parallel.precision import autocast
from headrace.train.parallel.ranks import Ranks
from headrace.train.parallel.strategy import drop_gathered, is_spread

log = logging.getLogger(__name__)


def validation_values(objective: Objective, run: RunConfig, ranks: Ranks) -> dict[str, float]:
    """Return the mean `loss` over the terms of the validation set, what the objective reports, and what was left out.

    Raises ValueError if there is no term in it.
    """
    config = run.validation
    assert config is not None, "the loop asks only where the run has a validation"
    sums: dict[str, Tensor] = {}
    terms, missing = 0, 0
    stream = open_stream(
        same_reading(run.mixture, config.dataset, center_fraction=config.center_fraction, labels=config.labels),
        global_batch=run.global_batch,
        rank=ranks.rank,
        world_size=ranks.size,
        columns=objective.columns,
        once=True,
    )
    began = time.perf_counter()
    objective.eval()
    with contextlib.closing(stream), torch.no_grad(), autocast(run.precision, ranks.device):
        for number, batch in enumerate(stream, 1):
            for part in micro_batches(first_samples(batch, config.samples), run.images_per_micro_batch):
                count, left_out = _counts(objective, part, config.dataset)
                missing += left_out
                # Also where nothing counts: of a model that is spread each block needs every process.
                result = objective(part) if count or is_spread(objective) else None
                if count and result is not None:
                    _add(sums, result, count)
                    terms += count
            # On all ranks after the same batch.
            if config.samples and number * run.global_batch >= config.samples:
                break
    drop_gathered(objective)
    objective.train()
    values = _means(sums, objective, url=config.dataset, counts=(terms, missing), ranks=ranks)
    if ranks.is_first:
        log.info("validation on %s: loss %.4f, %.1f s", config.dataset, values["loss"], time.perf_counter() - began)
    return values


def _counts(objective: Objective, part: Batch, url: str) -> tuple[int, int]:
    try:
        return objective.num_terms(part), objective.num_missing(part)
    except RowError as error:
        raise ValueError(f"validation.dataset {url}, sample {shown(part.key[error.row])}: {error}") from error


def _add(sums: dict[str, Tensor], result: tuple[Tensor, Mapping[str, Tensor]], count: int) -> None:
    """Add a part's loss, which is a sum, and its reports, which are means over `count` terms."""
    loss, report = result
    for name, value in {"loss": loss, **{name: value * count for name, value in report.items()}}.items():
        sums[name] = sums.get(name, 0.0) + value.double()


def _means(
    sums: dict[str, Tensor], objective: Objective, *, url: str, counts: tuple[int, int], ranks: Ranks
) -> dict[str, float]:
    # A rank whose share was padding alone has no sums, so the names are the objective's and not those that came.
    names = ["loss", *objective.reports]
    terms, missing, *totals = ranks.sum([*counts, *(float(sums.get(name, 0.0)) for name in names)])
    if not terms:
        why = f": {objective.missing} {missing:,.0f}" if missing else ""
        raise ValueError(f"validation.dataset {url} gave no sample to validate on{why}")
    values = {name: total / terms for name, total in zip(names, totals, strict=True)}
    return values | ({objective.missing: int(missing)} if objective.missing else {})
