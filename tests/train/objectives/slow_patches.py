"""Objectives that predict patches, in float64 loops, from the papers' text: what the fast ones are checked against.

Nothing of `headrace.train` is used. Patches stand where they stand in the picture, whatever the order is: an order
only says who sees whom and who predicts whom.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
Array = NDArray[np.float64]
Weights = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Slow:
    """One picture through one model."""

    weights: Weights
    patch: int
    heads: int
    eps: float = 1e-6
    head: str = "mlp"
    head_heads: int = 1
    targets: str = "normalised"
    codebook: Array | None = None

    def loss(
        self,
        picture: NDArray[np.uint8],
        *,
        sees: Callable[[int, int], bool],
        predictions: Iterable[tuple[int, int]],
        hidden: frozenset[int] = frozenset(),
    ) -> float:
        """Return the sum over `predictions`, pairs (output at patch, patch that it predicts), of their loss."""
        tokens = self.trunk(picture, sees, hidden)
        outputs = self.predicted(tokens, sees)
        return sum(self.error(outputs[at], picture, of) for at, of in predictions)

    def pixels(self, picture: NDArray[np.uint8], number: int) -> list[float]:
        """Patch `number`, row by row of the picture; inside row, column, channel."""
        across = picture.shape[1] // self.patch
        top, left = number // across * self.patch, number % across * self.patch
        return [
            (float(picture[top + y, left + x, c]) / 255 - MEAN[c]) / STD[c]
            for y in range(self.patch)
            for x in range(self.patch)
            for c in range(3)
        ]

    def error(self, output: Array, picture: NDArray[np.uint8], of: int) -> float:
        """The loss of one prediction."""
        values = self.pixels(picture, of)
        if self.targets == "tokens":
            assert self.codebook is not None
            distances = [sum((v - c) ** 2 for v, c in zip(values, code, strict=True)) for code in self.codebook]
            token = distances.index(min(distances))
            return math.log(sum(math.exp(logit) for logit in output)) - float(output[token])
        if self.targets == "normalised":
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            values = [(value - mean) / math.sqrt(variance + 1e-6) for value in values]
        return sum((p - t) ** 2 for p, t in zip(output, values, strict=True)) / len(values)

    def trunk(self, picture: NDArray[np.uint8], sees: Callable[[int, int], bool], hidden: frozenset[int]) -> Array:
        """Tokens of all patches behind the last norm."""
        front = "encoder.preprocessor.patchifier."
        side = picture.shape[0] // self.patch
        kernel, bias = self.weights[front + "proj.weight"], self.weights[front + "proj.bias"]
        rows = []
        for number in range(side * side):
            cut = np.array(self.pixels(picture, number)).reshape(self.patch, self.patch, 3)
            token = norm(
                (kernel * cut.transpose(2, 0, 1)).sum(axis=(1, 2, 3)) + bias, self.weights, front + "norm", self.eps
            )
            if number in hidden:
                token = self.weights["mask_token"]
            rows.append(token + position(number, side, len(token)))
        x, depth = np.array(rows), 0
        while f"encoder.trunk.blocks.{depth}.norm_1.weight" in self.weights:
            x = self.block(x, f"encoder.trunk.blocks.{depth}.", sees, self.heads, self.eps)
            depth += 1
        return np.array([norm(row, self.weights, "encoder.trunk.post_trunk_norm", self.eps) for row in x])

    def predicted(self, tokens: Array, sees: Callable[[int, int], bool]) -> Array:
        """What each token predicts."""
        last, last_bias = self.weights["head.decoder_pred.weight"], self.weights["head.decoder_pred.bias"]
        if self.head == "none":
            return np.array([last @ token + last_bias for token in tokens])
        first, first_bias = self.weights["head.decoder_projection.weight"], self.weights["head.decoder_projection.bias"]
        side = math.isqrt(len(tokens))
        x = np.array([first @ token + first_bias + position(n, side, len(first)) for n, token in enumerate(tokens)])
        depth = 0
        while f"head.decoder_blocks.{depth}.norm_2.weight" in self.weights:
            name = f"head.decoder_blocks.{depth}."
            if self.head == "transformer":
                x = self.block(x, name, sees, self.head_heads, 1e-5)
            else:
                if name + "norm_1.weight" in self.weights:
                    x = np.array([row + norm(row, self.weights, name + "norm_1", 1e-5) for row in x])
                x = np.array([row + self.mlp(norm(row, self.weights, name + "norm_2", 1e-5), name) for row in x])
            depth += 1
        return np.array([last @ norm(row, self.weights, "head.decoder_norm", 1e-5) + last_bias for row in x])

    def block(self, x: Array, name: str, sees: Callable[[int, int], bool], heads: int, eps: float) -> Array:
        """x + attention(norm(x)), then x + mlp(norm(x)), patch by patch and head by head."""
        width = x.shape[1]
        channels = width // heads
        qkv = np.array(
            [self.weights[name + "attn.qkv.weight"] @ norm(row, self.weights, name + "norm_1", eps) for row in x]
        )
        mixed = np.zeros_like(x)
        for one in range(heads):
            part = slice(one * channels, (one + 1) * channels)
            query, key, value = (qkv[:, kind * width : (kind + 1) * width][:, part] for kind in range(3))
            for i in range(len(x)):
                seen = [j for j in range(len(x)) if sees(i, j)]
                scores = [float(query[i] @ key[j]) / math.sqrt(channels) for j in seen]
                total = sum(math.exp(score) for score in scores)
                mixed[i, part] = sum(math.exp(score) / total * value[j] for score, j in zip(scores, seen, strict=True))
        x = np.array([row + self.weights[name + "attn.proj.weight"] @ one for row, one in zip(x, mixed, strict=True)])
        return np.array([row + self.mlp(norm(row, self.weights, name + "norm_2", eps), name) for row in x])

    def mlp(self, row: Array, name: str) -> Array:
        """Two linear layers around an exact GELU."""
        inner = self.weights[name + "mlp.fc1.weight"] @ row
        active = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in inner])
        return np.asarray(self.weights[name + "mlp.fc2.weight"] @ active)


def norm(row: Array, weights: Weights, name: str, eps: float) -> Array:
    """LayerNorm of one token: biased variance, epsilon under the root."""
    centred = row - sum(row) / len(row)
    scaled = centred / math.sqrt(float(sum(centred**2)) / len(row) + eps)
    return np.asarray(scaled * weights[name + ".weight"] + weights[name + ".bias"])


def position(number: int, side: int, width: int) -> Array:
    """Sine and cosine of the column in the first half, of the row in the second."""
    values: list[float] = []
    for place in (number % side, number // side):
        angles = [place * 10000 ** (-i / (width // 4)) for i in range(width // 4)]
        values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return np.array(values)
