"""CLIP: match each picture with its caption among all captions of the batch.

Architecture, tokenizer and names of parameters are open_clip's, so its `create_model` loads what a run exports. The
loss of a batch is not the sum over its parts, as each caption is everyone's negative: features are gathered over ranks
with their gradients, and of a batch in micro-batches they are taken twice. Source: CLIP, arXiv:2103.00020; SigLIP,
arXiv:2303.15343; DFN, arXiv:2309.17425.
"""

# B pairs of a part, D embedding width, T tokens of a caption

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.atomic import atomic_file
from headrace.pipeline import Batch
from headrace.train.evaluate.matching import PairPass
from headrace.train.models.clip_shapes import CLIP_MODELS, ClipModelConfig, named_shape
from headrace.train.models.clip_shapes import ClipTextConfig as ClipTextConfig
from headrace.train.models.clip_shapes import ClipVisionConfig as ClipVisionConfig
from headrace.train.models.clip_towers import FIRST_LOGITS, PairLoss, build_towers
from headrace.train.objectives.captions import CaptionTokens, says_something
from headrace.train.objectives.feature_cache import CachedPart, cache_parts, set_generators
from headrace.train.objectives.objective import Columns, Objective
from headrace.train.objectives.pair_loss import Logits, PairLosses, Pairs, pair_losses
from headrace.train.parallel.layout import piece_of, whole
from headrace.train.parallel.strategy import drop_gathered, is_spread
from headrace.train.pixels import CLIP_MEAN, CLIP_STD, Normalise, on_device
from headrace.train.runs.tensors import save_tensors

MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """CLIP: match each picture with its caption among all of the batch; a model in open_clip's form."""

    kind: Literal["clip"]
    """The tag of this objective."""
    model: str = ""
    """A row of the table, open_clip's names: ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14, each also with -quickgelu behind
    it; for images of the mixture's image_size. Empty = `model_cfg` says it."""
    model_cfg: ClipModelConfig | None = None
    """The architecture, as in open_clip's model configs; null = `model` names it."""
    loss: PairLoss = "softmax"
    """softmax = CLIP's, a pair against all others of the batch; sigmoid = SigLIP's, each cell for itself."""
    column: str = "caption"
    """Column of the index that holds the texts; null = no caption."""

    def __post_init__(self) -> None:
        if bool(self.model) == (self.model_cfg is not None):
            raise ValueError("give either `model`, a name, or `model_cfg`, an architecture")
        if self.model and self.model not in CLIP_MODELS:
            raise ValueError(f"unknown model {self.model!r}; known models: {', '.join(CLIP_MODELS)}")
        if not self.column:
            raise ValueError("column must name a column of the index")

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that came after the first runs, and have the value that those runs mean."""
        meant = {"model": "", "loss": "softmax", "column": "caption"}
        return tuple(name for name, value in meant.items() if getattr(self, name) == value)

    def build(self, *, image_size: int, seed: int) -> "Clip":  # noqa: ARG002  torch's generator is seeded by then
        """Return the objective. Raises ValueError for images of another side than the architecture's."""
        return Clip(self, image_size=image_size)

    def shape(self, image_size: int) -> ClipModelConfig:
        """Return the architecture for images of this side. Raises ValueError if they do not fit."""
        if self.model_cfg is None:
            return named_shape(self.model, image_size)
        wanted = self.model_cfg.vision_cfg.image_size
        if wanted != image_size:
            raise ValueError(
                f"objective.model_cfg.vision_cfg.image_size is {wanted}, the mixture's image_size {image_size}"
            )
        return self.model_cfg


class Clip(Objective):
    """open_clip's CLIP with a loss over the pairs of all ranks and micro-batches."""

    missing = "missing_captions"
    splits = False
    gathers = True
    caches = True
    released_prefix = "model."

    def __init__(self, config: ClipConfig, *, image_size: int) -> None:
        super().__init__()
        self.config, self.shape = config, config.shape(image_size)
        self.columns = (config.column,)
        self.scalars = ("model.logit_scale",) + (("model.logit_bias",) if config.loss == "sigmoid" else ())
        names = tuple(name.removeprefix("model.") for name in self.scalars)
        self.reports = (*names, "caption_accuracy", "cut_captions")
        self.normalise = Normalise(CLIP_MEAN, CLIP_STD)
        self.tokens = CaptionTokens(self.shape.text_cfg.context_length)
        self.tokenizer = self.tokens.tokenizer
        self.model = build_towers(self.shape, config.loss)
        self._cached: deque[CachedPart] = deque()
        self._exact: Logits | None = None
        self._is_first_pass = False
        self._pass: PairPass | None = None

    @cached_property
    def train_flops_per_image(self) -> float:
        """6 x parameters x tokens of each tower + 12 x depth x width x tokens^2; the token table is only looked up."""
        vision, text = self.shape.vision_cfg, self.shape.text_cfg
        tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        image = sum(parameter.numel() for parameter in self.model.visual.parameters())
        words = sum(parameter.numel() for parameter in self.model.transformer.parameters())
        total: float = 6.0 * (image * tokens + words * text.context_length)
        attention = vision.layers * vision.width * tokens**2 + text.layers * text.width * text.context_length**2
        return total + 12.0 * attention

    def usable(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which samples have a caption that says something. Raises RowError for one that is no text."""
        return says_something(columns[self.config.column], self.config.column)

    def num_terms(self, batch: Batch) -> int:
        """Return the number of pictures that have a caption."""
        return int(self.counted(batch).sum())

    def prepare(self, parts: Sequence[Batch]) -> None:
        """Take the features of a batch in several parts, and what the loss of all pairs says of them."""
        drop_gathered(self)
        self._cached.clear()
        # A spread model gathers weights in bf16 on a GPU, in steps of 0.016 at a scale of ln 14: read it whole instead.
        self._exact = self._logits_of(lambda tensor: whole(tensor.detach())) if is_spread(self) else None
        if len(parts) < 2:
            return
        logits = self._exact or self._logits_of(lambda tensor: tensor)
        self._is_first_pass = True
        try:
            self._cached.extend(
                cache_parts(
                    parts, features=self._first_features, losses=self._losses, logits=logits, device=self._device
                )
            )
        finally:
            self._is_first_pass = False

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum of the losses of these pairs against those of all ranks and parts; report scale and accuracy.

        In the first pass of `prepare` it returns their features.
        """
        cached = None if self._is_first_pass or not self._cached else self._cached.popleft()
        if cached is not None:
            assert np.array_equal(cached.position_B, batch.position), "parts come in the order they were prepared in"
            set_generators(cached.generators, self._device)
        if cached is not None and not torch.is_grad_enabled():
            return cached.losses.loss_B.sum(), self._report(batch, cached.losses)
        own = self._features(batch)
        if self._is_first_pass:
            return torch.stack([own.image_BD, own.text_BD]), {}
        logits = self._own_logits()
        if cached is not None:
            return cached.loss(own, logits), self._report(batch, cached.losses)
        losses = self._losses(own, logits)
        return losses.loss_B.sum(), self._report(batch, losses)

    def _features(self, batch: Batch) -> Pairs:
        """Return the features of all rows, also of those that do not count: so each rank has all gradients."""
        counted = self.counted(batch)
        images_B3HH = self.normalise(batch.images)
        tokens_BT = self.tokens(self._captions(batch, counted))
        image_BD = self.model.encode_image(images_B3HH, normalize=True)
        text_BD = self.model.encode_text(on_device(tokens_BT, images_B3HH.device), normalize=True)
        counted_B = on_device(counted.astype(np.float32), images_B3HH.device)
        if self._pass is not None:
            column = self.config.column
            self._pass.add(batch, column=column, counted_B=counted, image_BD=image_BD, text_BD=text_BD)
        return Pairs(image_BD, text_BD, counted_B)

    def _first_features(self, part: Batch) -> Pairs:
        # Called as a module, so that a spread model gathers its weights.
        both, _ = self(part)
        return Pairs(both[0], both[1], on_device(self.counted(part).astype(np.float32), both.device))

    def _captions(self, batch: Batch, counted: NDArray[np.bool_]) -> list[str]:
        captions = batch.columns[self.config.column]
        return [caption if good else "" for caption, good in zip(captions, counted, strict=True)]

    def _losses(self, own: Pairs, logits: Logits) -> PairLosses:
        return pair_losses(own, logits, loss=self.config.loss, ranks=self.ranks)

    def _report(self, batch: Batch, losses: PairLosses) -> Mapping[str, Tensor]:
        counted = self.counted(batch)
        num_counted = max(1, int(counted.sum()))
        logits = self._exact or self._own_logits()
        return {
            "logit_scale": logits.scale.detach()[0],
            **({} if logits.bias is None else {"logit_bias": logits.bias.detach()[0]}),
            "caption_accuracy": losses.right_B.sum() / num_counted,
            "cut_captions": torch.tensor(self.tokens.num_cut(self._captions(batch, counted)) / num_counted),
        }

    def _own_logits(self) -> Logits:
        """Return scale and bias with their gradients, in the full precision that `prepare` read."""
        found = self._logits_of(lambda tensor: tensor)
        if self._exact is None:
            return found
        scale = self._exact.scale + (found.scale - found.scale.detach())
        if found.bias is None or self._exact.bias is None:
            return Logits(scale, None)
        return Logits(scale, self._exact.bias + (found.bias - found.bias.detach()))

    def _logits_of(self, read: Any) -> Logits:
        bias = self.model.logit_bias
        return Logits(read(self.model.logit_scale), None if bias is None else read(bias))

    @property
    def _device(self) -> torch.device:
        return self.normalise.mean_C.device

    def after_step(self) -> None:
        """Keep the scale within [1, 100]."""
        with torch.no_grad():
            piece_of(self.model.logit_scale).local.clamp_(0.0, MAX_LOGIT_SCALE)
        self._exact = None

    def begin_pass(self) -> None:
        """Keep the features of the batches that come, to compare all of them."""
        self._pass = PairPass()

    def pass_values(self) -> Mapping[str, float]:
        """Return how well matched pairs are told from shuffled ones, and how often the right one is found."""
        assert self._pass is not None, "begin_pass came before"
        found, self._pass = self._pass, None
        return found.values(self.ranks)

    def export_beside(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write the folder `open_clip/`, which open_clip and the clip annotator load."""
        with atomic_file(str(folder / "open_clip" / "model.safetensors")) as path:
            save_tensors(path, tensors, {"format": "pt"})
        text = json.dumps(open_clip_config(self.shape, self.config.loss, self.reads), indent=2, sort_keys=True) + "\n"
        # The second name is the one that open_clip's `local-dir:FOLDER` looks for.
        for name in ("model_config.json", "open_clip_config.json"):
            with atomic_file(str(folder / "open_clip" / name)) as path:
                path.write_text(text, encoding="ascii")


def open_clip_config(shape: ClipModelConfig, loss: PairLoss, reads: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that open_clip reads: the architecture, and how an image becomes an input.

    The interpolation is that of training, bicubic where `reads` (a mixture as plain data) says none. `headrace` says
    what open_clip has no words for: the crops that were trained on, and the loss.
    """
    augment = reads.get("augment", {})
    trained = {"loss": loss, "augment": augment, "views": reads.get("views", [])}
    scale, bias = FIRST_LOGITS[loss]
    # Without the bias, `create_model` would make a model that has none.
    first = {} if bias is None else {"init_logit_scale": scale, "init_logit_bias": bias}
    preprocess_cfg = {
        "size": shape.vision_cfg.image_size,
        "mode": "RGB",
        "mean": list(CLIP_MEAN),
        "std": list(CLIP_STD),
        "interpolation": augment.get("interpolation", "bicubic"),
        "resize_mode": "shortest",
    }
    return {"model_cfg": asdict(shape) | first, "preprocess_cfg": preprocess_cfg, "headrace": trained}
