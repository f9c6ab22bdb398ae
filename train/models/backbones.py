"""What a run file says of the encoder that a contrastive or a masked-image objective trains."""

import math
from dataclasses import dataclass, fields, replace

from headrace.train.models.encoder import Encoder
from headrace.train.models.trunks.patch_projection import PatchProjectionKind
from headrace.train.models.trunks.resnet import STEM_WIDTH, Resnet, ResnetConfig
from headrace.train.models.trunks.standard_vit import Pool, Positions, StandardVit, StandardVitConfig
from headrace.train.models.trunks.swin_v2 import SwinV2, SwinV2Config
from headrace.train.models.vit import VitConfig

# Width, depth, heads. MoCo v3's S has 12 heads where DeiT's has 6: arXiv:2104.02057, table 2. Ti is DeiT's.
VITS = {
    "tiny": (192, 6, 3),
    "Ti": (192, 12, 3),
    "S": (384, 12, 12),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
# Blocks of each stage, and whether they are bottlenecks. Source: arXiv:1512.03385, table 1.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
}
# Channels and blocks of the first stage on, and after how many blocks the sum has a norm of its own. S, B, L, H and g
# are those of the study of masked image modelling, arXiv:2206.04664; the norms of the widest: arXiv:2111.09883, section
# 3.2. mini is ours, for a CPU.
SWINS = {
    "swinv2-mini": (32, (1, 1, 2, 1), 0),
    "swinv2-t": (96, (2, 2, 6, 2), 0),
    "swinv2-s": (96, (2, 2, 18, 2), 0),
    "swinv2-b": (128, (2, 2, 18, 2), 0),
    "swinv2-l": (192, (2, 2, 18, 2), 0),
    "swinv2-h": (352, (2, 2, 18, 2), 6),
    "swinv2-g": (448, (2, 2, 18, 2), 6),
}
MODELS = (*VITS, *RESNETS, *SWINS)
SWIN_HEAD_WIDTH = 32
SWIN_PATCH, SMALL_SWIN_PATCH = 4, 2
PATCH_CLIP = 0.1
OF_VITS = {"patch", "width", "depth", "heads", "pool", "last_norm", "positions", "patch_projection", "patch_clip"}
OF_RESNETS = {"width", "small_images", "zero_init"}
LATER = {"depths", "window", "bias_windows", "main_norms"}
"""Fields that came after the first runs."""
OF_SWINS = {"width", "heads", "small_images"} | LATER


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """The encoder of a contrastive or a masked-image objective: a vision transformer, a SwinV2, or a ResNet."""

    model: str = "S"
    """A row of the model table: tiny, Ti, S, B, L or H are transformers; swinv2-mini, -t, -s, -b, -l, -h or -g;
    resnet18 and resnet50."""
    patch: int = 16
    """Side of a patch in pixels; divides the image's."""
    width: int | None = None
    """Channels of a token, of a SwinV2's first stage, or of a ResNet's stem (SimCLR's and BYOL's "2x" is 128); null =
    the table's, 64."""
    depth: int | None = None
    """Blocks; null = the table's."""
    heads: int | None = None
    """Attention heads, of a SwinV2 those of its first stage; null = the table's, one for 32 channels."""
    pool: Pool = "class_token"
    """What stands for a picture: class_token = a learnt token that reads the others; mean = the mean of all patches;
    map = a learnt query that reads all of them, and an MLP."""
    last_norm: bool = True
    """A LayerNorm behind the last block. With pool mean the paper has 69.7 % with it and 76.3 % without (ViT-B)."""
    positions: Positions = "sincos"
    """How tokens know their place: sincos = fixed, computed; learned = a table, interpolated for other sides; none."""
    patch_projection: PatchProjectionKind = "learned"
    """How the first layer is trained; frozen = it stays as drawn; clipped = its gradient is cut to `patch_clip`."""
    patch_clip: float = PATCH_CLIP
    """With patch_projection clipped: the longest gradient of the first layer; the smaller, the nearer to frozen."""
    small_images: bool = False
    """For images of about 32 pixels. ResNets: a 3x3 convolution without stride and without max-pool as stem; SwinV2:
    patches of 2 pixels instead of 4."""
    zero_init: bool = True
    """ResNets: the last norm of each block begins at 0, as MoCo v3, SimCLR and BYOL have it."""
    depths: tuple[int, ...] | None = None
    """SwinV2: blocks of each stage; null = the table's."""
    window: int | None = None
    """SwinV2: tokens of a window's side; null = a quarter of the first grid's, as published: 12 at 192 pixels, 14 at
    224, 16 at 256."""
    bias_windows: tuple[int, ...] | None = None
    """SwinV2: windows of each stage that its weights were trained with, where they are others than these: [12, 12, 12,
    6] for weights of 192 pixels. null = its own."""
    main_norms: int | None = None
    """SwinV2: after every so many blocks of a stage a norm of the sum itself; 0 = none, null = the table's."""

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"unknown model {self.model!r}; known models: {', '.join(MODELS)}")
        if not 0 < self.patch_clip < math.inf:
            raise ValueError(f"patch_clip must be above 0 and finite, got {self.patch_clip}")
        if self.patch_projection != "clipped" and self.patch_clip != PATCH_CLIP:
            raise ValueError(f"patch_clip is for patch_projection clipped, not {self.patch_projection}")
        has = OF_VITS if self.model in VITS else OF_RESNETS if self.model in RESNETS else OF_SWINS
        for field in fields(self):
            if field.name not in has | {"model"} and getattr(self, field.name) != field.default:
                raise ValueError(f"model {self.model} has no {field.name}; leave it out")

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that came after the first runs, and have the value that those runs mean."""
        return tuple(sorted(name for name in LATER if getattr(self, name) is None))

    def build(self, image_size: int) -> Encoder:
        """Return the encoder for images of this side, its weights drawn from torch's generator.

        Raises ValueError if the numbers do not fit each other.
        """
        if self.model in SWINS:
            return SwinV2(self.swin(image_size))
        return self._resnet(image_size) if self.model in RESNETS else self._vit(image_size)

    def at_side(self, image_size: int, *, trained_at: int) -> "BackboneConfig":
        """Return the backbone for images of this side with weights that were trained at another.

        A SwinV2 is told in which windows its network of places was trained.
        """
        if self.model not in SWINS or image_size == trained_at or self.bias_windows is not None:
            return self
        return replace(self, bias_windows=self.swin(trained_at).measures)

    def swin(self, image_size: int) -> SwinV2Config:
        """Return the shape of the SwinV2 that this is."""
        width, depths, main_norms = SWINS[self.model]
        width = width if self.width is None else self.width
        return SwinV2Config(
            image_size=image_size,
            embed_width=width,
            depths=depths if self.depths is None else self.depths,
            first_heads=max(1, width // SWIN_HEAD_WIDTH) if self.heads is None else self.heads,
            patch=SMALL_SWIN_PATCH if self.small_images else SWIN_PATCH,
            window=self.window,
            bias_windows=self.bias_windows,
            main_norms=main_norms if self.main_norms is None else self.main_norms,
        )

    def _resnet(self, image_size: int) -> Resnet:
        blocks, bottleneck = RESNETS[self.model]
        return Resnet(
            ResnetConfig(
                image_size=image_size,
                blocks=blocks,
                bottleneck=bottleneck,
                stem_width=STEM_WIDTH if self.width is None else self.width,
                small_images=self.small_images,
                zero_init=self.zero_init,
            )
        )

    def _vit(self, image_size: int) -> StandardVit:
        width, depth, heads = VITS[self.model]
        grid = VitConfig(
            image_size=image_size,
            patch=self.patch,
            width=width if self.width is None else self.width,
            depth=depth if self.depth is None else self.depth,
            heads=heads if self.heads is None else self.heads,
        )
        return StandardVit(
            StandardVitConfig(
                grid=grid,
                pool=self.pool,
                last_norm=self.last_norm,
                positions=self.positions,
                patch_projection=self.patch_projection,
                patch_clip=self.patch_clip,
            )
        )
