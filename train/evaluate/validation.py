"""The loss on images that are not trained on: the compass of a run.

The same number at any world size up to rounding, as samples, crops and prefixes are functions of (seed, place in the
pass). A finite pass is padded at its end; padded rows are in the batch, not in the loss.
"""

import contextlib
import logging
import math
import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from headrace.pipeline import Batch, open_stream
from headrace.text import shown
from headrace.train.batches import first_samples, micro_batches
from headrace.train.config import RunConfig
from headrace.train.evaluate.passes import same_reading, showing_whole
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
    mixture = same_reading(
        run.mixture,
        config.dataset,
        center_fraction=config.center_fraction,
        interpolation=config.interpolation,
        labels=config.labels,
    )
    mixture = showing_whole(mixture) if objective.shows_whole else mixture
    stream = open_stream(
        mixture,
        global_batch=run.global_batch,
        rank=ranks.rank,
        world_size=ranks.size,
        columns=objective.columns,
        map=objective.sample_map(mixture),
        once=True,
    )
    began = time.perf_counter()
    objective.eval()
    objective.begin_pass()
    objective.fix_prefix(config.fixed_prefix)
    if config.by_place:
        objective.by_place = torch.zeros(2, objective.num_places, dtype=torch.float64, device=ranks.device)
    with contextlib.closing(stream), torch.no_grad(), autocast(run.precision, ranks.device):
        for number, batch in enumerate(stream, 1):
            parts = micro_batches(first_samples(batch, config.samples), run.images_per_micro_batch)
            counts = [_counts(objective, part, config.dataset) for part in parts]
            objective.prepare(parts)
            for part, (count, left_out) in zip(parts, counts, strict=True):
                missing += left_out
                # Also where nothing counts: a model that is spread, or a loss that is, needs every process.
                result = objective(part) if count or is_spread(objective) or objective.gathers else None
                if count and result is not None:
                    _add(sums, result, count)
                    terms += count
            # On all ranks after the same batch.
            if config.samples and number * run.global_batch >= config.samples:
                break
    drop_gathered(objective)
    objective.train()
    objective.fix_prefix(None)
    values = _means(sums, objective, url=config.dataset, counts=(terms, missing), ranks=ranks)
    values |= objective.pass_values()
    if ranks.is_first:
        log.info("validation on %s: loss %.4f, %.1f s", config.dataset, values["loss"], time.perf_counter() - began)
    return values


def losses_by_place(objective: Objective, run: RunConfig, ranks: Ranks) -> dict[str, list[float | None]]:
    """Return the mean `losses` of the newest validation at each place of a sample, and the numbers of their `terms`.

    None where nothing is predicted, or the loss is not finite. A validation that these weights lack, as the run was
    killed behind it, is done.
    """
    if objective.by_place is None:
        validation_values(objective, run, ranks)
    assert objective.by_place is not None, "monitors_of asks only an objective with places"
    losses, terms = np.split(np.array(ranks.sum(objective.by_place.flatten().tolist(), "the losses by place")), 2)
    objective.by_place = None
    means = [loss / max(1, count) for loss, count in zip(losses.tolist(), terms.tolist(), strict=True)]
    known = [count > 0 and math.isfinite(mean) for mean, count in zip(means, terms, strict=True)]
    return {
        "losses": [mean if is_known else None for mean, is_known in zip(means, known, strict=True)],
        "terms": [int(count) for count in terms],
    }


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
