"""What a forward pass changes beside the gradients: running statistics of BatchNorm, a queue.

A step that is passed over must leave nothing of itself behind. With NaN in its activations it would spoil every later
validation; and a resumed run, which passes over it without a forward pass, would differ.
"""

from torch import Tensor, nn


class StepBuffers:
    """The persistent buffers of a model as they were before a step."""

    def __init__(self, module: nn.Module) -> None:
        saved = module.state_dict(keep_vars=True)
        self._buffers = [buffer for name, buffer in module.named_buffers() if name in saved]
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Remember what they hold."""
        self._kept = [buffer.clone() for buffer in self._buffers]

    def put_back(self) -> None:
        """Let them hold that again."""
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)
