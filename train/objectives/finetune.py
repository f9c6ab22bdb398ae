"""Fine-tuning for classification: a trunk that was trained before, and a fresh head, trained together.

The trunk is any that another objective trains; `init_from` of the run gives it its weights. With adapters the trunk
stays frozen and what is exported has them merged. Everything random is a function of (seed, position), so
that a step is the same however its batch is shared. At validation nothing is mixed, dropped or smoothed.
"""

# B batch, L patches, D width, C classes, H image side in pixels, N blocks

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.config_types import OneOf
from headrace.pipeline import Batch
from headrace.train.models.batch_norm import BatchNorm
from headrace.train.models.class_heads import AttentiveHead, MeanHead
from headrace.train.models.encoder import TunableEncoder
from headrace.train.models.lora import LoraConfig, add_lora, merge_lora
from headrace.train.objectives.balance import Balance, class_weights, log_shares
from headrace.train.objectives.mixing import ONE_A_LANE, MixConfig, draw_mixes, mix, partners
from headrace.train.objectives.objective import Columns, Objective, ObjectiveConfig, RowError
from headrace.train.objectives.supervised import NO_LABEL, read_labels
from headrace.train.objectives.tuned import kept_branches, pretrained_configs
from headrace.train.pixels import Normalise, on_device

PARTNER = "{}:partner"


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig:
    """Fine-tuning for classification: the trunk of another objective, in full or through adapters, and a class head."""

    kind: Literal["finetune"]
    """The tag of this objective."""
    of: Annotated[ObjectiveConfig, OneOf("kind", pretrained_configs)]
    """The objective whose trunk it is, as in the run file that trained it; its heads are left out."""
    num_classes: int
    """Classes are 0 .. num_classes - 1; a label outside is refused."""
    column: str = "label"
    """Column of the index: a whole number, or a list of one; null and -1 = no label."""
    head: Literal["mean", "attentive"] = "mean"
    """mean = linear on the mean of the trunk's tokens; attentive = a query on the mean of the last blocks, as AIM."""
    blocks: int = 6
    """With head attentive: so many last blocks are averaged, before the trunk's last norm."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    drop_path: float = 0.0
    """Share of pictures that skip a branch of the last block; it grows from 0 at the first block."""
    mix: MixConfig = field(default_factory=MixConfig)
    """Mixup and CutMix."""
    lora: LoraConfig | None = None
    """Train adapters and the head alone; null = train everything."""
    balance: Balance = "none"
    """How rare classes are helped: effective = their pictures count more; logits = common ones must do better; none."""
    class_counts: tuple[int, ...] = ()
    """With balance: pictures of each class in training."""

    def __post_init__(self) -> None:
        if self.num_classes < 2 or self.blocks < 1:
            raise ValueError(
                f"num_classes must be at least 2 and blocks at least 1, got {self.num_classes} and {self.blocks}"
            )
        for name in ("label_smoothing", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        self._check_balance()

    def _check_balance(self) -> None:
        counts, wanted = self.class_counts, self.num_classes if self.balance != "none" else 0
        if len(counts) != wanted or min(counts, default=0) < 0 or (wanted and not any(counts)):
            raise ValueError(
                f"class_counts must be a number of pictures of each of the {wanted} classes with balance "
                f"{self.balance}, got {len(counts)} numbers"
            )

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that play no part, of those that were added since runs keep their digest."""
        return ("balance", "class_counts") if self.balance == "none" else ()

    def build(self, *, image_size: int, seed: int) -> "Finetune":
        """Return the objective for images of this side. Raises ValueError if `of` has no trunk to fine-tune."""
        pretrained = self.of.build(image_size=image_size, seed=seed)
        trunk = pretrained.trunk
        if not isinstance(trunk, TunableEncoder):
            what = "none" if trunk is None else f"a {type(trunk).__name__}"
            raise ValueError(f"fine-tuning takes a trunk of transformer blocks or a ResNet; {self.of.kind} has {what}")
        if trunk.convolves and (self.lora is not None or self.drop_path):
            raise ValueError("a ResNet has no attention for `lora` and no `drop_path`: leave both out")
        return Finetune(self, trunk, normalise=pretrained.normalise, seed=seed)


class Finetune(Objective):
    """Trunk with attention everywhere, class head, cross-entropy with soft targets."""

    missing = "missing_labels"
    reports = ("top1",)
    released_prefix = "encoder."

    def __init__(self, config: FinetuneConfig, encoder: TunableEncoder, *, normalise: Normalise, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.columns = (config.column,)
        self.normalise = normalise
        self.encoder = encoder
        if config.lora is None:
            encoder.requires_grad_(True)  # also what pretraining left as it was drawn: a frozen patch projection
        else:
            add_lora(encoder, config.lora)
        width, heads = encoder.shape.width, encoder.shape.heads
        self.classifier: MeanHead | AttentiveHead
        if config.head == "mean":
            self.classifier = MeanHead(width=width, classes=config.num_classes)
        else:
            self.classifier = AttentiveHead(width=width, heads=heads, classes=config.num_classes)
            # Nothing reads it, and ranks wait for a gradient of whatever is trained.
            for name, parameter in encoder.named_parameters():
                if encoder.depth_of(name) > encoder.shape.depth:
                    parameter.requires_grad_(False)
        self._weight_C = self._shift_C = None
        if config.balance == "effective":
            self._weight_C = torch.tensor(class_weights(config.class_counts), dtype=torch.float32, device="cpu")
        elif config.balance == "logits":
            self._shift_C = torch.tensor(log_shares(config.class_counts), dtype=torch.float32, device="cpu")
        if any(isinstance(module, BatchNorm) for module in encoder.modules()):
            # Statistics are those of the batch: processes may share it, parts may not.
            self.splits, self.gathers, self.averages = False, True, False

    @property
    def trunk(self) -> TunableEncoder:
        """The encoder."""
        return self.encoder

    @cached_property
    def train_flops_per_image(self) -> float:
        """6 x parameters x tokens + 12 x depth x width x tokens^2; of frozen weights 4, as they need no gradient.

        Of a ResNet or a SwinV2, whose stages differ, three times what it takes forward.
        """
        trunk = self.encoder.shape
        if self.encoder.first_read:
            return 3.0 * self.encoder.forward_flops
        parameters = sum(parameter.numel() for parameter in self.encoder.parameters())
        flops = (6.0 if self.config.lora is None else 4.0) * parameters * trunk.num_patches
        head = 2.0 * trunk.width**2 * trunk.num_patches if self.config.head == "attentive" else 0.0
        head += trunk.width * self.config.num_classes
        return flops + 6.0 * head + 12.0 * trunk.depth * trunk.width * trunk.num_patches**2

    def usable(self, columns: Columns) -> NDArray[np.bool_]:
        """Return which pictures have a label. Raises RowError for one that is no class here."""
        return self._classes(columns) >= 0

    def num_terms(self, batch: Batch) -> int:
        """Return the number of pictures that have a label."""
        return int(self.counted(batch).sum())

    def before_cut(self, batch: Batch) -> Batch:
        """Put each picture's partner beside it, as another view and another column."""
        if not self.config.mix.mixes:
            return batch
        partner_B = partners(batch.lane, batch.position, self.seed)
        class_B = np.where(batch.valid, self._classes(batch.columns), NO_LABEL)
        rows = on_device(partner_B, batch.images.device) if isinstance(batch.images, Tensor) else partner_B
        columns = {**batch.columns, PARTNER.format(self.config.column): class_B[partner_B]}
        return dataclasses.replace(batch, other_views=(*batch.other_views, batch.images[rows]), columns=columns)

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the sum over labelled pictures of their cross-entropy, and the share whose best class is right.

        Of mixed pictures the right class is that of the larger part.
        """
        class_B = self._classes(batch.columns)
        counted_B = batch.valid & (class_B >= 0)
        images_B3HH, other_B, share_B = self._mixed(batch, class_B)
        device = images_B3HH.device
        logits_BC = self.logits(images_B3HH, position_B=batch.position).float()
        own, other = (on_device(np.maximum(classes, 0), device)[:, None] for classes in (class_B, other_B))
        share = on_device(share_B.astype(np.float32), device)[:, None]
        target_BC = torch.zeros_like(logits_BC).scatter_(1, own, share).scatter_add_(1, other, 1 - share)
        spread = self.config.label_smoothing if self.training else 0.0
        target_BC = target_BC * (1 - spread) + spread / self.config.num_classes
        # All rows go through the trunk, also those that do not count: every rank has a gradient for every weight.
        counted = on_device(counted_B, device)
        loss = -(self._weighed(target_BC) * self._shifted(logits_BC).log_softmax(dim=1)).sum(dim=1).mul(counted).sum()
        right = logits_BC.detach().argmax(dim=1) == torch.where(share >= 0.5, own, other)[:, 0]
        return loss, {"top1": right.mul(counted).sum() / max(1, int(counted_B.sum()))}

    def _weighed(self, target_BC: Tensor) -> Tensor:
        """Return targets times what their classes count, in training."""
        if self._weight_C is None or not self.training:
            return target_BC
        return target_BC * self._weight_C.to(target_BC.device)

    def _shifted(self, logits_BC: Tensor) -> Tensor:
        """Return logits plus what follows from how common their classes are, in training."""
        return (
            logits_BC if self._shift_C is None or not self.training else logits_BC + self._shift_C.to(logits_BC.device)
        )

    def logits(self, images_B3HH: Tensor, *, position_B: NDArray[np.int64] | None = None) -> Tensor:
        """Return logits [B, C] of normalised images; in training blocks are dropped as their positions say."""
        kept_NB2 = self._kept(position_B, images_B3HH.device) if position_B is not None and self.training else None
        if isinstance(self.classifier, MeanHead):
            x = self.encoder.pooled(images_B3HH, kept_NB2)
        else:
            first = max(self.encoder.first_read, self.encoder.shape.depth - self.config.blocks)
            outputs = enumerate(self.encoder.block_outputs(images_B3HH, kept_NB2))
            x = torch.stack([x_BLD for number, x_BLD in outputs if number >= first]).mean(dim=0)
        out: Tensor = self.classifier(x)
        return out

    def exported_tensors(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights with their adapters merged."""
        return tensors if self.config.lora is None else merge_lora(tensors, self.config.lora)

    @property
    def exported_config(self) -> FinetuneConfig:
        """The config without adapters, which are merged."""
        return dataclasses.replace(self.config, lora=None)

    def _classes(self, columns: Columns) -> NDArray[np.int64]:
        """Return the class of each row, -1 for none. Raises RowError for what is no class, and for several."""
        labels = read_labels(columns[self.config.column], self.config.num_classes)
        counts = np.bincount(labels.row_N, minlength=len(labels.known_B))
        if counts.max(initial=0) > 1:
            row = int(counts.argmax())
            raise RowError(row, f"{counts[row]} labels; fine-tuning wants one a picture")
        class_B = np.full(len(labels.known_B), NO_LABEL, np.int64)
        class_B[labels.row_N] = labels.class_N
        return class_B

    def expect_lanes(self, lanes: int, *, global_batch: int) -> None:
        if self.config.mix.mixes and global_batch < 2 * lanes:
            raise ValueError(ONE_A_LANE)

    def _mixed(self, batch: Batch, class_B: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64], NDArray[np.float64]]:
        """Return normalised images, the partners' classes, and what share of each label is the picture's own."""
        images_B3HH = self.normalise(batch.images)
        partner = PARTNER.format(self.config.column)
        if not self.training or partner not in batch.columns:
            return images_B3HH, class_B, np.ones(len(class_B))
        other_B = np.asarray(batch.columns[partner], np.int64)
        side = images_B3HH.shape[-1]
        mixes = draw_mixes(batch.position, self.config.mix, seed=self.seed, side=side).without(other_B < 0)
        return mix(images_B3HH, self.normalise(batch.other_views[-1]), mixes), other_B, mixes.share_B

    def _kept(self, position_B: NDArray[np.int64], device: torch.device) -> Tensor | None:
        depth = self.encoder.shape.depth
        return kept_branches(self.config.drop_path, depth, seed=self.seed, position=position_B, device=device)
