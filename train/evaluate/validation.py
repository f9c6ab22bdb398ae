"""The loss on images that are not trained on: the compass of a run.

The same number at any world size up to rounding, as samples, crops and prefixes are functions of (seed, place in the
pass). A finite pass is padded at its end; padded rows are in the batch, not in the loss.
"""

import contextlib

import torch

from headrace.pipeline import open_stream
from headrace.train.batches import first_samples, micro_batches
from headrace.train.config import RunConfig
from headrace.train.evaluate.passes import same_reading
from headrace.train.objectives.objective import Objective
from headrace.train.parallel.precision import autocast
from headrace.train.parallel.ranks import Ranks


def validation_loss(objective: Objective, run: RunConfig, ranks: Ranks) -> float:
    """Return the mean loss over the terms of the validation set. Raises ValueError if there is no sample in it."""
    config = run.validation
    assert config is not None, "the loop asks only where the run has a validation"
    total, terms = torch.zeros((), dtype=torch.float64, device=ranks.device), 0
    stream = open_stream(
        same_reading(run.mixture, config.dataset),
        global_batch=run.global_batch,
        rank=ranks.rank,
        world_size=ranks.size,
        columns=objective.columns,
        once=True,
    )
    objective.eval()
    with contextlib.closing(stream), torch.no_grad(), autocast(run.precision, ranks.device):
        for batch in stream:
            for part in micro_batches(first_samples(batch, config.samples), run.images_per_micro_batch):
                if part.valid.any():
                    total += objective(part)[0]
                    terms += objective.num_terms(part)
            if config.samples and int(batch.position.min()) >= config.samples:
                break
    objective.train()
    loss, count = ranks.sum([float(total), terms])
    if not count:
        raise ValueError(f"validation.dataset {config.dataset} gave no sample")
    return loss / count
