"""Shapes of CLIP's two towers, in open_clip's words, and the table of those that are known by a name.

The names are open_clip's. QuickGELU (`-quickgelu`) is what OpenAI's weights and DFN's L/14 and H/14 were trained with;
DFN's B/16 has the plain one. The weights do not say which. Source: open_clip's model configs.
"""

from dataclasses import dataclass, replace

# open_clip's tokenizer knows this many tokens; a smaller table would be indexed out of range.
NUM_TOKENS = 49408
QUICK = "-quickgelu"


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


def _row(embed_dim: int, *, patch: int, vision: tuple[int, int, int], text: tuple[int, int, int]) -> ClipModelConfig:
    """Return a row of the table; `vision` is width, blocks and head width, `text` is width, blocks and heads."""
    width, layers, head_width = vision
    text_width, text_layers, heads = text
    return ClipModelConfig(
        embed_dim=embed_dim,
        vision_cfg=ClipVisionConfig(
            image_size=224, patch_size=patch, width=width, layers=layers, head_width=head_width
        ),
        text_cfg=ClipTextConfig(width=text_width, layers=text_layers, heads=heads),
    )


_PLAIN = {
    "ViT-B-32": _row(512, patch=32, vision=(768, 12, 64), text=(512, 12, 8)),
    "ViT-B-16": _row(512, patch=16, vision=(768, 12, 64), text=(512, 12, 8)),
    "ViT-L-14": _row(768, patch=14, vision=(1024, 24, 64), text=(768, 12, 12)),
    "ViT-H-14": _row(1024, patch=14, vision=(1280, 32, 80), text=(1024, 24, 16)),
}

# The value of `objective.model` -> its shape at 224 pixels.
CLIP_MODELS = _PLAIN | {name + QUICK: replace(row, quick_gelu=True) for name, row in _PLAIN.items()}


def named_shape(name: str, image_size: int) -> ClipModelConfig:
    """Return a row of the table for images of this side. Raises ValueError where patches do not divide it."""
    row = CLIP_MODELS[name]
    try:
        return replace(row, vision_cfg=replace(row.vision_cfg, image_size=image_size))
    except ValueError:
        patch = row.vision_cfg.patch_size
        raise ValueError(
            f"objective.model {name} has patches of {patch} pixels, which do not divide image_size {image_size}; take "
            f"image_size {max(1, image_size // patch) * patch}"
        ) from None
