"""The first layer of a vision transformer, and the ways of keeping it quiet.

In contrastive training a spike of the gradient begins here, and the accuracy dips some steps later. The paper finds
that a layer which stays as it was drawn trains steadier and ends higher; BatchNorm and WeightNorm do not help, and a
clipped gradient does where its limit is small, whose limit is the frozen layer. Source: MoCo v3, arXiv:2104.02057,
section 4.
"""

# B batch, L patches, D width, H image side in pixels

from typing import Literal

import torch
from torch import Tensor, nn

from headrace.train.models.batch_norm import BatchNorm
from headrace.train.models.vit import patch_tokens
from headrace.train.parallel.layout import piece_of, whole

PatchProjectionKind = Literal["learned", "frozen", "batch_norm", "weight_norm", "clipped"]


class PatchProjection(nn.Module):
    """A convolution whose stride is its kernel, with a bias.

    `frozen` takes no gradient: no optimizer sees it, no decay shrinks it, no process waits for its sum. `batch_norm`
    has a BatchNorm behind it. `weight_norm` learns the length of each channel's kernel apart from its direction
    (arXiv:1602.07868). `clipped` has its gradient cut to a length of its own before that of all is.
    """

    def __init__(self, width: int, patch: int, kind: PatchProjectionKind) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)
        nn.init.xavier_uniform_(self.proj.weight.view(width, -1))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)
        if kind == "frozen":
            self.proj.requires_grad_(False)
        self.norm = BatchNorm(width) if kind == "batch_norm" else None
        # The lengths at the start, so that the first outputs are those of the plain layer.
        self.length = nn.Parameter(_lengths(self.proj.weight.detach())) if kind == "weight_norm" else None

    def forward(self, images_B3HH: Tensor) -> Tensor:
        """Return tokens [B, L, D]. Raises ValueError for images that are not whole patches."""
        patch, (height, width) = self.proj.kernel_size[0], images_B3HH.shape[-2:]
        if height % patch or width % patch:
            raise ValueError(f"images of {width}x{height} pixels are not whole patches of {patch}")
        tokens_BLD = patch_tokens(images_B3HH, self._kernel(), self.proj.bias)
        if self.norm is None:
            return tokens_BLD
        out: Tensor = self.norm(tokens_BLD.transpose(1, 2)).transpose(1, 2)
        return out

    def _kernel(self) -> Tensor:
        weight = self.proj.weight
        if self.length is None:
            return weight
        return weight * (self.length / _lengths(weight)).view(-1, 1, 1, 1)

    @torch.no_grad()
    def plain(self) -> tuple[Tensor, Tensor]:
        """Return kernel and bias of the plain convolution that computes the same at evaluation."""
        assert self.proj.bias is not None
        if self.norm is None:
            return self._kernel().clone(), self.proj.bias.clone()
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        factor_D = self.norm.weight.float() / (self.norm.running_var.float() + self.norm.eps).sqrt()
        kernel = self._kernel().float() * factor_D.view(-1, 1, 1, 1)
        bias = (self.proj.bias.float() - self.norm.running_mean.float()) * factor_D + self.norm.bias.float()
        return kernel.to(self.proj.weight.dtype), bias.to(self.proj.bias.dtype)

    @torch.no_grad()
    def clip_gradient(self, limit: float) -> None:
        """Scale the gradient of this layer down to a length of at most `limit`."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norms = [whole(torch.linalg.vector_norm(gradient)) for gradient in gradients]
        if norms:
            factor = (limit / (torch.stack(norms).norm() + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                piece_of(gradient).local.mul_(factor)


def _lengths(weight: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return lengths
