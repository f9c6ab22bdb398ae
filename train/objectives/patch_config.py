"""What the objectives that predict patches have in common: a trunk of the model table, a head, and targets."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from headrace.train.models.vit import NORM_EPS, VitConfig
from headrace.train.objectives.codebook import CodebookConfig

Targets = Literal["normalised", "pixels", "tokens"]
Head = Literal["none", "mlp", "transformer"]

MAX_NORM_EPS = 1e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class AimShape:
    """One row of the model table."""

    width: int
    depth: int
    heads: int
    head_width: int
    head_depth: int


# AIM, arXiv:2401.08541, table 1 (head: section 4.2, table 4). 0.6B-deep has the blocks' parameters of 0.6B in 54 blocks
# of 1024 (the paper's own deeper twin is not known to us). tiny is ours, for tests and studies on a CPU.
AIM_SHAPES = {
    "tiny": AimShape(width=192, depth=6, heads=3, head_width=256, head_depth=2),
    "0.6B": AimShape(width=1536, depth=24, heads=12, head_width=2048, head_depth=12),
    "0.6B-deep": AimShape(width=1024, depth=54, heads=8, head_width=2048, head_depth=12),
    "1B": AimShape(width=2048, depth=24, heads=16, head_width=2048, head_depth=12),
    "3B": AimShape(width=3072, depth=24, heads=24, head_width=2048, head_depth=12),
    "7B": AimShape(width=4096, depth=32, heads=32, head_width=2048, head_depth=12),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchConfig:
    """A trunk of the model table, the head on top of it, and what is predicted of a patch."""

    added: ClassVar[tuple[str, ...]] = ("norm_eps", "targets", "codebook", "head", "head_heads")
    """Fields that came after the first runs."""
    kind: str
    """The tag of this objective."""
    model: str
    """A row of the model table: tiny, 0.6B, 0.6B-deep, 1B, 3B or 7B."""
    patch: int = 14
    """Side of a patch in pixels; divides the mixture's image_size."""
    width: int | None = None
    """Channels of the trunk; null = the table's."""
    depth: int | None = None
    """Blocks of the trunk; null = the table's."""
    heads: int | None = None
    """Attention heads of the trunk; null = the table's."""
    norm_eps: float = NORM_EPS
    """Epsilon of the trunk's norms: 1e-6 as the released inference code; the released training code has 1e-5."""
    targets: Targets = "normalised"
    """normalised = the pixels of each patch with mean 0 and variance 1; pixels = as they are; both by squared error.
    tokens = the nearest patch of the codebook, by cross-entropy."""
    codebook: CodebookConfig | None = None
    """The codebook of `tokens`; null with other targets."""
    head: Head = "mlp"
    """mlp = blocks that see one token; transformer = blocks that attend as the trunk does; none = one linear layer."""
    head_width: int | None = None
    """Channels of the head; null = the table's."""
    head_depth: int | None = None
    """Blocks of the head; null = the table's."""
    head_heads: int | None = None
    """Attention heads of a transformer head; null = as wide ones as the trunk's."""
    head_identity_residual: bool = False
    """True = as in Apple's training code, each block of an mlp head starts with x = x + norm(x)."""

    def __post_init__(self) -> None:
        if self.model not in AIM_SHAPES:
            raise ValueError(f"unknown model {self.model!r}; known models: {', '.join(AIM_SHAPES)}")
        shape = self.shape
        if shape.head_width < 4 or shape.head_width % 4 or shape.head_depth < 0:
            raise ValueError(f"head_width must be a multiple of 4 and head_depth >= 0, got {shape}")
        if not 0 < self.norm_eps <= MAX_NORM_EPS:
            raise ValueError(f"norm_eps must be above 0 and at most {MAX_NORM_EPS}, got {self.norm_eps}")
        if (self.codebook is not None) != (self.targets == "tokens"):
            raise ValueError(
                "targets tokens and a codebook go together; headrace codebook makes one, and says its keys"
            )
        if self.head_identity_residual and self.head != "mlp":
            raise ValueError(f"head_identity_residual belongs to head mlp, and head is {self.head}")
        if self.head == "transformer":
            self._check_head_heads()
        elif self.head_heads is not None:
            raise ValueError(f"head_heads belongs to head transformer, and head is {self.head}")

    def _check_head_heads(self) -> None:
        if self.num_head_heads < 1 or self.shape.head_width % self.num_head_heads:
            raise ValueError(
                f"head_heads must divide head_width {self.shape.head_width}, got {self.num_head_heads}; set head_heads"
            )

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that came after the first runs, and have the value that those runs mean."""
        first = {item.name: item.default for item in dataclasses.fields(self)}
        return tuple(name for name in self.added if getattr(self, name) == first[name])

    @property
    def shape(self) -> AimShape:
        """The table's row with this config's changes."""
        row = AIM_SHAPES[self.model]
        names = ("width", "depth", "heads", "head_width", "head_depth")
        return AimShape(
            **{name: getattr(row, name) if getattr(self, name) is None else getattr(self, name) for name in names}
        )

    @property
    def num_head_heads(self) -> int:
        """Attention heads of a transformer head; 0 if the trunk's are wider than all of it."""
        if self.head_heads is not None:
            return self.head_heads
        return self.shape.head_width * self.shape.heads // max(1, self.shape.width)

    def trunk(self, image_size: int) -> VitConfig:
        """Return the trunk for images of this side. Raises ValueError if they do not fit."""
        shape = self.shape
        return VitConfig(
            image_size=image_size,
            patch=self.patch,
            width=shape.width,
            depth=shape.depth,
            heads=shape.heads,
            norm_eps=self.norm_eps,
        )
