"""The attentive probe of AIM, several learning rates side by side.

Probe number r is what it would be alone; the probes share tokens, nothing else. Keys and values are never formed for
every token: without biases, q . (K x) = (K' q) . x and sum a V x = V sum a x, so a token costs D x heads products
instead of D x D, with the same result. Source: AIM, arXiv:2401.08541, section 4.3, equation 4.
"""

# R probes, B batch, L tokens, D width, A attention heads, E width of one head, C classes

import torch
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-6
QUERY_STD = 0.02


class AttentiveProbes(nn.Module):
    """BatchNorm without affine -> one query attending to all tokens -> linear classifier; `num_probes` of them.

    All start from the same weights; each has parameters of its own, so that each can have its own learning rate.
    """

    def __init__(self, *, width: int, heads: int, classes: int, num_probes: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm = nn.BatchNorm1d(width, affine=False, eps=BATCH_NORM_EPS)
        first = (torch.randn(width) * QUERY_STD, _xavier(width, width), _xavier(width, width), _xavier(classes, width))
        self.query, self.key, self.value, self.classifier = (
            nn.ParameterList(nn.Parameter(tensor.clone()) for _ in range(num_probes)) for tensor in first
        )

    def parameters_of(self, probe: int) -> list[nn.Parameter]:
        """Return the parameters of one probe."""
        return [kind[probe] for kind in (self.query, self.key, self.value, self.classifier)]

    def forward(self, tokens_BLD: Tensor) -> Tensor:
        """Return logits [R, B, C]."""
        probes, width = len(self.query), tokens_BLD.shape[2]
        # As rows of one matrix: over the middle of three dimensions the same norm is several times slower.
        x_BLD = self.norm(tokens_BLD.flatten(0, 1)).view(tokens_BLD.shape)
        query_RAE = torch.stack(list(self.query)).view(probes, self.heads, -1)
        key_RAED = torch.stack(list(self.key)).view(probes, self.heads, -1, width)
        value_RAED = torch.stack(list(self.value)).view(probes, self.heads, -1, width)
        folded_RAD = torch.einsum("rae,raed->rad", query_RAE, key_RAED) * self.scale
        weight_BLRA = torch.einsum("bld,rad->blra", x_BLD, folded_RAD).softmax(dim=1)
        mixed_BRAD = torch.einsum("blra,bld->brad", weight_BLRA, x_BLD)
        pooled_RBD = torch.einsum("brad,raed->rbae", mixed_BRAD, value_RAED).flatten(2)
        return torch.einsum("rbd,rcd->rbc", pooled_RBD, torch.stack(list(self.classifier)))


def _xavier(rows: int, columns: int) -> Tensor:
    return nn.init.xavier_uniform_(torch.empty(rows, columns))
