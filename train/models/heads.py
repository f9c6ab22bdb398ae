"""Heads that are fitted on a frozen trunk, several learning rates side by side.

Probe number r is what it would be alone; the probes share features, nothing else. Nothing flows back into the features,
so the statistics of BatchNorm are facts of a batch: whoever fits takes them over all its parts and processes first, and
may then read the parts one after the other with the same result.
"""

# R probes, B batch, L tokens, D width, A attention heads, E width of one head, C classes

import torch
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-6
QUERY_STD = 0.02
LINEAR_STD = 0.01


class Probes(nn.Module):
    """BatchNorm without affine over the channels, then `num_probes` heads that differ in nothing but their fitting."""

    undecayed: tuple[str, ...] = ()
    """Names of the parameters that no weight decay is for."""

    def __init__(self, *, width: int, num_probes: int, first: dict[str, Tensor]) -> None:
        super().__init__()
        self.num_probes = num_probes
        self.norm: nn.Module = nn.BatchNorm1d(width, affine=False, eps=BATCH_NORM_EPS)
        for name, tensor in first.items():
            setattr(self, name, nn.ParameterList(nn.Parameter(tensor.clone()) for _ in range(num_probes)))
        self._kinds = tuple(first)

    def without_norm(self) -> "Probes":
        """Let the heads read features as they are; return them."""
        self.norm = nn.Identity()
        return self

    def named_parameters_of(self, probe: int) -> dict[str, nn.Parameter]:
        """Return the parameters of one probe by kind."""
        return {name: getattr(self, name)[probe] for name in self._kinds}

    def parameters_of(self, probe: int) -> list[nn.Parameter]:
        """Return the parameters of one probe."""
        return list(self.named_parameters_of(probe).values())

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [R, B, C] of features [B, L, D] or [B, D]."""
        # As rows of one matrix: over the middle of three dimensions the same norm is several times slower.
        return self.read(self.norm(x.flatten(0, -2)).view(x.shape))

    def read(self, x: Tensor) -> Tensor:
        """Return logits [R, B, C] of features that are normalised."""
        raise NotImplementedError

    def row_bytes(self, tokens: int) -> int:
        """Return about how many bytes one image takes in forward and backward."""
        raise NotImplementedError


class LinearProbes(Probes):
    """BatchNorm without affine -> linear, on one row an image. Weights N(0, 0.01), bias 0.

    Source: MAE, arXiv:2111.06377, appendix A; MoCo v3, arXiv:2104.02057, has no norm: `without_norm`.
    """

    undecayed = ("bias",)
    weight: nn.ParameterList
    bias: nn.ParameterList

    def __init__(self, *, width: int, classes: int, num_probes: int) -> None:
        first = {"weight": torch.randn(classes, width) * LINEAR_STD, "bias": torch.zeros(classes)}
        super().__init__(width=width, num_probes=num_probes, first=first)

    def read(self, x: Tensor) -> Tensor:
        """Return logits [R, B, C] of [B, D]."""
        return torch.einsum("bd,rcd->rbc", x, torch.stack(list(self.weight))) + torch.stack(list(self.bias))[:, None]

    def row_bytes(self, tokens: int) -> int:  # noqa: ARG002  an average has one
        """Return about how many bytes one image takes: features, and logits three times."""
        classes, width = self.weight[0].shape
        return 4 * (2 * int(width) + 3 * self.num_probes * int(classes))


class AttentiveProbes(Probes):
    """BatchNorm without affine -> one query attending to all tokens -> linear classifier without bias.

    Keys and values are never formed for every token: without biases, q . (K x) = (K' q) . x and sum a V x = V sum a x,
    so a token costs D x heads products instead of D x D, with the same result. Source: AIM, arXiv:2401.08541, section
    4.3, equation 4.
    """

    # One vector written as a row: like other vectors it is not decayed.
    undecayed = ("query",)
    query: nn.ParameterList
    key: nn.ParameterList
    value: nn.ParameterList
    classifier: nn.ParameterList

    def __init__(self, *, width: int, heads: int, classes: int, num_probes: int) -> None:
        query = torch.randn(width) * QUERY_STD
        matrices = {name: _xavier(width, width) for name in ("key", "value")}
        first = {"query": query, **matrices, "classifier": _xavier(classes, width)}
        super().__init__(width=width, num_probes=num_probes, first=first)
        self.heads, self.scale = heads, (width // heads) ** -0.5

    def read(self, x: Tensor) -> Tensor:
        """Return logits [R, B, C] of tokens [B, L, D]."""
        probes, width, x_BLD = len(self.query), x.shape[2], x
        query_RAE = torch.stack(list(self.query)).view(probes, self.heads, -1)
        key_RAED = torch.stack(list(self.key)).view(probes, self.heads, -1, width)
        value_RAED = torch.stack(list(self.value)).view(probes, self.heads, -1, width)
        folded_RAD = torch.einsum("rae,raed->rad", query_RAE, key_RAED) * self.scale
        weight_BLRA = torch.einsum("bld,rad->blra", x_BLD, folded_RAD).softmax(dim=1)
        mixed_BRAD = torch.einsum("blra,bld->brad", weight_BLRA, x_BLD)
        pooled_RBD = torch.einsum("brad,raed->rbae", mixed_BRAD, value_RAED).flatten(2)
        return torch.einsum("rbd,rcd->rbc", pooled_RBD, torch.stack(list(self.classifier)))

    def row_bytes(self, tokens: int) -> int:
        """Return about how many bytes one image takes: tokens, weights of attention and what they gather."""
        width, per_head = len(self.query[0]), self.num_probes * self.heads
        return 4 * (2 * tokens * width + 3 * tokens * per_head + 3 * per_head * width)


def _xavier(rows: int, columns: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(rows, columns))
