"""Plain stochastic gradient descent with momentum."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class SgdConfig:
    """SGD with momentum, no weight decay."""

    kind: Literal["sgd"] = "sgd"
    """The tag of this optimizer."""
    lr: float = 0.1
    """Highest learning rate."""
    momentum: float = 0.9
    """Share of the last step that goes on."""

    def build(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer over the trainable parameters."""
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trainable, lr=self.lr, momentum=self.momentum)
