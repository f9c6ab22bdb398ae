"""Golden numbers of the contrastive losses, by slow code of its own: loops over numbers in float64, no torch.

Written from the papers: MoCo v3, arXiv:2104.02057, algorithm 1; SimCLR, arXiv:2002.05709, equation 1; BYOL,
arXiv:2006.07733, equation 2; SwAV, arXiv:2006.09882, equations 2 to 4, with the order of its reference code's
iterations. It shares no line with what it is compared with. Features are sines, so that nothing but this file is needed
to make the numbers again:

    python tests/train/golden/contrastive.py > tests/train/golden/contrastive.json
"""

import json
import math
import sys
from collections.abc import Sequence

Vector = Sequence[float]
Matrix = Sequence[Vector]

PICTURES, WIDTH, PROTOTYPES, VIEWS = 6, 5, 4, 4


def waves(phase: float, rows: int, width: int) -> list[list[float]]:
    """Return rows of numbers that look drawn."""
    return [
        [math.sin(1.7 * (row * width + column) + phase + 0.3 * row * row) for column in range(width)]
        for row in range(rows)
    ]


def unit(row: Vector) -> list[float]:
    """Return the row at length 1."""
    length = math.sqrt(sum(value * value for value in row))
    return [value / length for value in row]


def dot(one: Vector, other: Vector) -> float:
    """Return the inner product."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def cross_entropy(logits: Vector, right: int) -> float:
    """Return -ln of the share that softmax gives to `right`."""
    return -math.log(math.exp(logits[right]) / sum(math.exp(value) for value in logits))


def moco(queries: Sequence[Matrix], keys: Sequence[Matrix], temperature: float) -> float:
    """Return MoCo v3's loss: each view's queries among the keys of the other view, both directions added."""
    total = 0.0
    for view in (0, 1):
        key = [unit(row) for row in keys[1 - view]]
        losses = []
        for number, query in enumerate(queries[view]):
            logits = [dot(unit(query), one) / temperature for one in key]
            losses.append(cross_entropy(logits, number))
        total += 2 * temperature * sum(losses) / len(losses)
    return total


def simclr(views: Sequence[Matrix], temperature: float) -> float:
    """Return NT-Xent: each of 2N views is to find its partner among the 2N - 1 others."""
    every = [unit(row) for view in views for row in view]
    half, losses = len(every) // 2, []
    for number, one in enumerate(every):
        others = [place for place in range(len(every)) if place != number]
        logits = [dot(one, every[place]) / temperature for place in others]
        losses.append(cross_entropy(logits, others.index((number + half) % len(every))))
    return sum(losses) / len(losses)


def byol(predictions: Sequence[Matrix], targets: Sequence[Matrix]) -> float:
    """Return the squared distance of each view's prediction from the other view's target, both directions added."""
    total = 0.0
    for view in (0, 1):
        distances = [
            sum((a - b) ** 2 for a, b in zip(unit(one), unit(other), strict=True))
            for one, other in zip(predictions[view], targets[1 - view], strict=True)
        ]
        total += sum(distances) / len(distances)
    return total


def sinkhorn(cosines: Matrix, epsilon: float, iterations: int) -> list[list[float]]:
    """Return each row shared out among the columns, all of which get as much."""
    rows, columns = len(cosines), len(cosines[0])
    shares = [[math.exp(value / epsilon) for value in row] for row in cosines]
    for _ in range(iterations):
        for column in range(columns):
            total = sum(row[column] for row in shares)
            for row in shares:
                row[column] /= total * columns
        for row in shares:
            total = sum(row)
            row[:] = [value / (total * rows) for value in row]
    return [[value * rows for value in row] for row in shares]


def swav(
    views: Sequence[Matrix],
    prototypes: Matrix,
    *,
    temperature: float,
    epsilon: float,
    iterations: int,
    queue: Sequence[Matrix] = ((), ()),
) -> float:
    """Return SwAV's loss: codes of the first two views are predicted from every other view; a queue for each of them.

    What is in the queue has a part in the codes, and none in the loss.
    """
    directions = [unit(row) for row in prototypes]

    def cosines(rows: Matrix) -> list[list[float]]:
        return [[dot(unit(row), direction) for direction in directions] for row in rows]

    losses = []
    for of in (0, 1):
        codes = sinkhorn(cosines([*views[of], *queue[of]]), epsilon, iterations)[: len(views[of])]
        for view, rows in enumerate(views):
            if view == of:
                continue
            for code, row in zip(codes, cosines(rows), strict=True):
                total = sum(math.exp(value / temperature) for value in row)
                losses.append(
                    -sum(c * math.log(math.exp(v / temperature) / total) for c, v in zip(code, row, strict=True))
                )
    return sum(losses) / len(losses)


def inputs() -> tuple[list[list[list[float]]], list[list[float]]]:
    """Return features of all views, and prototypes."""
    return [waves(phase, PICTURES, WIDTH) for phase in range(VIEWS)], waves(9.0, PROTOTYPES, WIDTH)


def golden() -> dict[str, object]:
    """Return the numbers of this file's features."""
    views, prototypes = inputs()
    queue = [waves(20.0 + number, 3, WIDTH) for number in (0, 1)]
    options = {"temperature": 0.1, "epsilon": 0.05, "iterations": 3}
    directions = [unit(row) for row in prototypes]
    return {
        "moco": [moco(views[:2], views[2:], temperature) for temperature in (0.2, 1.0)],
        "simclr": [simclr(views[:2], temperature) for temperature in (0.1, 0.5)],
        "byol": byol(views[:2], views[2:]),
        "codes": sinkhorn([[dot(unit(row), one) for one in directions] for row in views[0]], 0.05, 3),
        "swav": [swav(views, prototypes, **options), swav(views, prototypes, queue=queue, **options)],  # type: ignore[arg-type]
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(golden(), indent=1) + "\n")
