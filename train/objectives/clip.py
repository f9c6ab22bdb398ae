"""CLIP: match each image with its caption among all captions of the batch.

Architecture, tokenizer and names of parameters are open_clip's, so its `create_model` loads what `export` writes. The
loss of a batch is not the sum over its parts (each caption is everyone's negative), so this objective refuses
micro-batches and several processes. Source: CLIP, arXiv:2103.00020; DFN, arXiv:2309.17425.
"""

# B batch, D embedding width, T tokens of a caption

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from headrace.files import atomic_file
from headrace.pipeline import Batch
from headrace.train.objectives.objective import Columns, Objective
from headrace.train.pixels import CLIP_MEAN, CLIP_STD, Normalise
from headrace.train.runs.tensors import save_tensors

INIT_LOGIT_SCALE = math.log(1 / 0.07)
MAX_LOGIT_SCALE = math.log(100)
# open_clip's tokenizer knows this many tokens; a smaller table would be indexed out of range.
NUM_TOKENS = 49408


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipVisionConfig:
    """The image tower, in open_clip's words (`vision_cfg`)."""

    image_size: int
    """Side in pixels; must equal the mixture's image_size."""
    patch_size: int
    """Side of a patch in pixels."""
    width: int
    """Channels of a token."""
    layers: int
    """Number of blocks."""
    head_width: int = 64
    """Channels of one attention head; divides width."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over width."""

    def __post_init__(self) -> None:
        if min(self.image_size, self.patch_size, self.width, self.layers, self.head_width) < 1:
            raise ValueError("image_size, patch_size, width, layers and head_width must be at least 1")
        if self.width % self.head_width or self.image_size % self.patch_size:
            raise ValueError(f"head_width must divide width, and patch_size image_size, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTextConfig:
    """The text tower, in open_clip's words (`text_cfg`)."""

    width: int
    """Channels of a token."""
    layers: int
    """Number of blocks."""
    heads: int
    """Attention heads; divides width."""
    context_length: int = 77
    """Tokens of a caption, longer ones are cut."""
    vocab_size: int = NUM_TOKENS
    """Rows of the token table; open_clip's tokenizer needs 49408."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads) < 1 or self.width % self.heads:
            raise ValueError(f"width, layers and heads must be at least 1 and heads divide width, got {self}")
        if self.context_length < 3 or self.vocab_size < NUM_TOKENS:
            raise ValueError(f"context_length must be at least 3 and vocab_size at least {NUM_TOKENS}, got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipModelConfig:
    """open_clip's `model_cfg`."""

    embed_dim: int
    """Width of the space that images and captions share."""
    vision_cfg: ClipVisionConfig
    """The image tower."""
    text_cfg: ClipTextConfig
    """The text tower."""
    quick_gelu: bool = False
    """True = OpenAI's approximation of GELU, which the DFN L/14 and H/14 weights use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """CLIP: match each image with its caption among all of the batch; a model in open_clip's form."""

    kind: Literal["clip"]
    """The tag of this objective."""
    model_cfg: ClipModelConfig
    """The architecture, as in open_clip's model configs."""

    def build(self, *, image_size: int, seed: int) -> "Clip":  # noqa: ARG002  torch's generator is seeded by then
        """Return the objective. Raises ValueError for images of another side than the architecture's."""
        return Clip(self, image_size=image_size)


class Clip(Objective):
    """open_clip's CLIP with the symmetric contrastive loss."""

    columns = ("caption",)
    missing = "missing_captions"
    reports = ("logit_scale", "caption_accuracy")
    splits = False
    released_prefix = "model."

    def __init__(self, config: ClipConfig, *, image_size: int) -> None:
        super().__init__()
        import open_clip

        if config.model_cfg.vision_cfg.image_size != image_size:
            wanted = config.model_cfg.vision_cfg.image_size
            raise ValueError(
                f"objective.model_cfg.vision_cfg.image_size is {wanted}, the mixture's image_size {image_size}"
            )
        self.config = config
        self.normalise = Normalise(CLIP_MEAN, CLIP_STD)
        self.tokenizer = open_clip.SimpleTokenizer(context_length=config.model_cfg.text_cfg.context_length)
        self.model = open_clip.CLIP(**asdict(config.model_cfg), init_logit_scale=INIT_LOGIT_SCALE)

    @cached_property
    def train_flops_per_image(self) -> float:
        """6 x parameters x tokens of each tower + 12 x depth x width x tokens^2; the token table is only looked up."""
        vision, text = self.config.model_cfg.vision_cfg, self.config.model_cfg.text_cfg
        tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        image = sum(parameter.numel() for parameter in self.model.visual.parameters())
        words = sum(parameter.numel() for parameter in self.model.transformer.parameters())
        total: float = 6.0 * (image * tokens + words * text.context_length)
        attention = vision.layers * vision.width * tokens**2 + text.layers * text.width * text.context_length**2
        return total + 12.0 * attention

    def usable(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which samples have a caption: an empty text is the same for all, and nobody's pair."""
        return np.array([bool(caption and caption.strip()) for caption in columns["caption"]], np.bool_)

    def num_terms(self, batch: Batch) -> int:
        """Return the number of images that have a caption."""
        return int(self.counted(batch).sum())

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the contrastive loss times the number of pairs; report scale and share of right captions."""
        counted = self.counted(batch)
        if not counted.any():
            return self.model.logit_scale * 0.0, {}
        images = self.normalise(batch.images[counted])
        captions = [caption for caption, good in zip(batch.columns["caption"], counted, strict=True) if good]
        tokens_BT = self.tokenizer(captions).to(images.device)
        image_BD = self.model.encode_image(images, normalize=True)
        text_BD = self.model.encode_text(tokens_BT, normalize=True)
        logits_BB = (self.model.logit_scale.exp() * image_BD @ text_BD.T).float()
        target_B = torch.arange(len(captions), device=images.device)
        loss = (functional.cross_entropy(logits_BB, target_B) + functional.cross_entropy(logits_BB.T, target_B)) / 2
        report = {
            "logit_scale": self.model.logit_scale.detach(),
            "caption_accuracy": (logits_BB.argmax(dim=1) == target_B).float().mean(),
        }
        return loss * len(captions), report

    def after_step(self) -> None:
        """Keep the scale within [1, 100]."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    def export_beside(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write the folder `open_clip/`, which open_clip and the clip annotator load."""
        with atomic_file(str(folder / "open_clip" / "model.safetensors")) as path:
            save_tensors(path, tensors, {"format": "pt"})
        text = json.dumps(open_clip_config(self.config), indent=2, sort_keys=True) + "\n"
        # The second name is the one that open_clip's `local-dir:FOLDER` looks for.
        for name in ("model_config.json", "open_clip_config.json"):
            with atomic_file(str(folder / "open_clip" / name)) as path:
                path.write_text(text, encoding="ascii")


def open_clip_config(config: ClipConfig) -> dict[str, Any]:
    """Return the config that open_clip reads: the architecture, and how an image becomes an input."""
    model_cfg = asdict(config.model_cfg)
    preprocess_cfg = {
        "size": config.model_cfg.vision_cfg.image_size,
        "mode": "RGB",
        "mean": list(CLIP_MEAN),
        "std": list(CLIP_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
