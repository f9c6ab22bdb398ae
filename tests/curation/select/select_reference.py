"""Select again, row by row in plain Python: what the fast one is compared with."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.curation.annotate.annotators.caption_minhash import shingles
from headrace.curation.select.steps import (
    CaptionDuplicates,
    EmbeddingDuplicates,
    ExactDuplicates,
    NearDuplicates,
    Quota,
    Rule,
    SelectStep,
    Semantic,
    SoftCap,
    TopFraction,
    Unsafe,
)

Row = dict[str, Any]
Key = tuple[str, str, int]


@dataclass
class Verdict:
    """What the ledger must say of a row; all None: kept."""

    step: str | None = None
    reason: str | None = None
    value: float | None = None
    threshold: float | None = None
    duplicate_of: str | None = None
    caption_of: str | None = None


# SQL of a rule or an order -> the same in Python.
EXPRESSIONS: dict[str, Callable[[Row], Any]] = {
    "least(image_width, image_height) >= 60": lambda row: min(row["image_width"], row["image_height"]) >= 60,
    "aspect <= 2.0": lambda row: None if row["aspect"] is None else row["aspect"] <= 2.0,
    "caption is not null": lambda row: row["caption"] is not None,
    "clip_score > 0.25 or caption like '%1'": lambda row: _or(
        _greater(row["clip_score"], 0.25), None if row["caption"] is None else row["caption"].endswith("1")
    ),
    "image_width * image_height": lambda row: row["image_width"] * row["image_height"],
    "image_width": lambda row: row["image_width"],
    "clip_score": lambda row: row["clip_score"],
    "clip_score * 2": lambda row: None if row["clip_score"] is None else row["clip_score"] * 2,
}


# What goes with a caption.
CAPTION_COLUMNS = ("caption", "caption_chars", "clip_score", "unsafe_text_score")


def key_of(row: Row) -> Key:
    """Return the identity of an input row."""
    return (row["uid"], row["input_file"], row["input_row"])


def select(rows: Sequence[Row], steps: Sequence[SelectStep]) -> dict[Key, Verdict]:
    """Return the verdict on every input row; `rows` are raw rows in raw order."""
    chosen: dict[Key, Row] = {}
    for raw in rows:
        row = {name: None if _absent(value) else value for name, value in raw.items()}
        before = chosen.get(key_of(row))
        if before is None or (before["status"] != "success" and row["status"] == "success"):
            chosen[key_of(row)] = row
    verdicts = {key: Verdict() for key in chosen}
    alive = sorted(chosen.values(), key=key_of)

    def drop(dropped: Sequence[tuple[Row, Verdict]]) -> None:
        nonlocal alive
        for row, verdict in dropped:
            verdicts[key_of(row)] = verdict
        gone = {key_of(row) for row, _ in dropped}
        alive = [row for row in alive if key_of(row) not in gone]

    drop([(row, Verdict("fetch", row["error_class"])) for row in alive if row["status"] != "success"])
    failed = [row for row in alive if row.get("decode_error") is not None]
    drop([(row, Verdict("decode", row["decode_error"].split(":")[0])) for row in failed])
    num_input = len(alive)
    for step in steps:
        match step:
            case Rule():
                drop(_rule(step, alive))
            case Unsafe():
                drop(_unsafe(step, alive))
            case ExactDuplicates():
                drop(_exact(step, alive))
            case NearDuplicates():
                drop(_near(step, alive))
            case TopFraction():
                drop(_top(step, alive, num_input))
            case EmbeddingDuplicates():
                drop(_embeddings(step, alive))
            case CaptionDuplicates():
                drop(_captions(step, alive))
            case Semantic():
                drop(_semantic(step, alive))
            case SoftCap():
                drop(_soft_cap(step, alive, num_input))
            case Quota():
                drop(_quota(step, alive))
            case _:
                raise AssertionError(step)
    for row in alive:
        verdicts[key_of(row)].caption_of = row.get("caption_of")
    return verdicts


Drops = list[tuple[Row, Verdict]]


def _rule(step: Rule, rows: Sequence[Row]) -> Drops:
    found = []
    for row in rows:
        answer = EXPRESSIONS[step.keep](row)
        if answer is not True:
            value = EXPRESSIONS[step.value](row) if step.value else None
            found.append((row, Verdict(step.name, "null" if answer is None else "false", value, step.threshold)))
    return found


def _unsafe(step: Unsafe, rows: Sequence[Row]) -> Drops:
    found = []
    for row in rows:
        image, text = row["unsafe_image_score"], row["unsafe_text_score"]
        if step.image_threshold is not None and _absent(image):
            found.append((row, Verdict(step.name, "no-image-score", None, step.image_threshold)))
        elif step.image_threshold is not None and image >= step.image_threshold:
            found.append((row, Verdict(step.name, "unsafe-image", image, step.image_threshold)))
        elif step.text_threshold is not None and _absent(text) and row["caption"] is not None:
            found.append((row, Verdict(step.name, "no-text-score", None, step.text_threshold)))
        elif step.text_threshold is not None and not _absent(text) and text >= step.text_threshold:
            found.append((row, Verdict(step.name, "unsafe-text", text, step.text_threshold)))
    return found


def _exact(step: ExactDuplicates, rows: Sequence[Row]) -> Drops:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["sha256"], []).append(row)
    found = []
    for group in groups.values():
        best, *rest = sorted(group, key=lambda row: (*_caption(step.captions, row), *_order(step.order, row)))
        found += [(row, Verdict(step.name, "same-bytes", None, None, best["uid"])) for row in rest]
    return found


def _near(step: NearDuplicates, rows: Sequence[Row]) -> Drops:
    taken: list[tuple[Row, Row]] = []
    found = _groups(step, rows, taken)
    for row, handed in taken:
        row.update(handed)
    return found


def _groups(step: NearDuplicates, rows: Sequence[Row], taken: list[tuple[Row, Row]]) -> Drops:
    hashed = [row for row in rows if row["pdq"] is not None and row["pdq_quality"] >= step.min_quality]
    label = list(range(len(hashed)))

    def find(node: int) -> int:
        while label[node] != node:
            node = label[node]
        return node

    for left in range(len(hashed)):
        for right in range(left):
            if distance(hashed[left], hashed[right], step.hashes) <= step.distance:
                label[find(left)] = find(right)
    groups: dict[int, list[Row]] = {}
    for node, row in enumerate(hashed):
        groups.setdefault(find(node), []).append(row)
    found = []
    by_centre = "pdq" in (step.hashes or ("pdq",))
    for group in groups.values():
        order = {
            key_of(row): _order(step.order, row) if step.order else _best_copy(group, row, by_centre) for row in group
        }
        near = lambda left, right: -distance(left, right, step.hashes)  # noqa: E731
        for best, rest in _led(sorted(group, key=lambda row: order[key_of(row)]), near, step.chains, -step.distance):
            donor = min([best, *rest], key=lambda row: (*_caption(step.captions, row), *order[key_of(row)]))
            if donor is not best and donor["caption"] is not None:
                handed = {name: donor[name] for name in CAPTION_COLUMNS}
                taken.append((best, {**handed, "caption_of": donor.get("caption_of") or donor["uid"]}))
            for row in rest:
                apart = distance(row, best, step.hashes)
                reason = "near-duplicate" if apart <= step.distance else "near-duplicate-chain"
                found.append((row, Verdict(step.name, reason, apart, step.distance, best["uid"])))
    return found


def _embeddings(step: EmbeddingDuplicates, rows: Sequence[Row]) -> Drops:
    def near(left: Row, right: Row) -> float:
        return cosine(left["copy_embedding"], right["copy_embedding"])

    found, taken = [], []
    present = [row for row in rows if has_direction(row["copy_embedding"])]
    for group in _linked(present, lambda left, right: near(left, right) >= step.threshold):
        order = {key_of(row): _order(step.order, row) if step.order else _best_copy(group, row) for row in group}
        for best, rest in _led(sorted(group, key=lambda row: order[key_of(row)]), near, step.chains, step.threshold):
            donor = min([best, *rest], key=lambda row: (*_caption(step.captions, row), *order[key_of(row)]))
            if donor is not best and donor["caption"] is not None:
                handed = {name: donor[name] for name in CAPTION_COLUMNS}
                taken.append((best, {**handed, "caption_of": donor.get("caption_of") or donor["uid"]}))
            for row in rest:
                reason = "near-embedding" if near(row, best) >= step.threshold else "near-embedding-chain"
                found.append((row, Verdict(step.name, reason, near(row, best), step.threshold, best["uid"])))
    for row, handed in taken:
        row.update(handed)
    return found


def _captions(step: CaptionDuplicates, rows: Sequence[Row]) -> Drops:
    def near(left: Row, right: Row) -> float:
        a, b = set(shingles(left["caption"])), set(shingles(right["caption"]))
        return round(len(a & b) / len(a | b), 6)

    found = []
    present = [row for row in rows if row["caption"] is not None]
    for group in _linked(present, lambda left, right: near(left, right) >= step.threshold):
        ranked = sorted(group, key=lambda row: _order(step.order or ("clip_score desc",), row))
        for best, rest in _led(ranked, near, step.chains, step.threshold):
            for row in rest[step.most - 1 :]:
                value = near(row, best)
                reason = "near-caption" if value >= step.threshold else "near-caption-chain"
                reason = "same-caption" if value == 1 else reason
                found.append((row, Verdict(step.name, reason, value, step.threshold, best["uid"])))
    return found


def _semantic(step: Semantic, rows: Sequence[Row]) -> Drops:
    """One cluster, an order of its own."""
    assert step.clusters.number == 1
    assert step.order
    present = [row for row in rows if has_direction(row["copy_embedding"])]
    before: list[tuple[Row, Row]] = []
    found = []
    for row in sorted(present, key=lambda row: _order(step.order, row)):
        values = [(cosine(row["copy_embedding"], other["copy_embedding"]), kept) for other, kept in before]
        value, kept = max(values, key=lambda item: item[0], default=(0.0, row))
        if value >= round(1 - step.eps, 6):
            found.append((row, Verdict(step.name, "same-meaning", value, round(1 - step.eps, 6), kept["uid"])))
            if step.compared_with == "all":
                before.append((row, kept))
        else:
            before.append((row, row))
    return found


def _soft_cap(step: SoftCap, rows: Sequence[Row], num_input: int) -> Drops:
    base = num_input if step.of == "input" else len(rows)
    draws = int((Decimal(repr(step.fraction)) * base).quantize(Decimal(1), ROUND_HALF_UP))
    score = EXPRESSIONS[step.score]
    scored = sorted((row for row in rows if score(row) is not None and math.isfinite(score(row))), key=key_of)
    left = {key_of(row): float(score(row)) for row in scored}
    drawn: set[Key] = set()
    number = 0
    while draws > 0 and scored:
        noisy = [(-left[key_of(row)] - _noise(step.seed, row, number), key_of(row)) for row in scored]
        taken = [key for _, key in sorted(noisy)[: min(draws, step.round_size or -(-draws // 1280))]]
        for key in taken:
            left[key] -= step.penalty
        drawn.update(taken)
        draws, number = draws - len(taken), number + 1
    found = []
    for row in rows:
        if key_of(row) not in left:
            found.append((row, Verdict(step.name, "no-score", None, None)))
        elif key_of(row) not in drawn:
            found.append((row, Verdict(step.name, "not-drawn", score(row), None)))
    return found


def _noise(seed: int, row: Row, number: int) -> float:
    text = "\n".join(map(str, (seed, *key_of(row))))
    key = int.from_bytes(hashlib.md5(text.encode()).digest()[8:], "little")
    mixed = (key + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return float(-np.log(-np.log(((mixed ^ mixed >> 31) >> 12) / 2**52 + 0.5 / 2**52)))


def _quota(step: Quota, rows: Sequence[Row]) -> Drops:
    share = Decimal(repr(step.share or 0)) * len(rows)
    most = step.most or max(1, int(share.quantize(Decimal(1), ROUND_HALF_UP)))
    groups: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=lambda row: _order(step.order, row)):
        groups.setdefault(EXPRESSIONS[step.by](row), []).append(row)
    return [
        (row, Verdict(step.name, "over-quota", place, most))
        for group in groups.values()
        for place, row in enumerate(group, start=1)
        if place > most
    ]


def _linked(rows: Sequence[Row], near: Callable[[Row, Row], bool]) -> list[list[Row]]:
    """Return the connected components."""
    groups: list[list[Row]] = []
    for row in rows:
        mine = [group for group in groups if any(near(row, other) for other in group)]
        groups = [group for group in groups if group not in mine] + [
            [row, *(other for group in mine for other in group)]
        ]
    return groups


def _led(
    ranked: list[Row], near: Callable[[Row, Row], float], chains: str, least: float
) -> list[tuple[Row, list[Row]]]:
    """Return each row that stays and those that go for it, the best first."""
    found = []
    while ranked:
        best, *rest = ranked
        mine = [row for row in rest if chains == "join" or near(row, best) >= least]
        found.append((best, mine))
        ranked = [row for row in rest if not any(row is other for other in mine)]
    return found


def has_direction(values: list[float] | None) -> bool:
    """True for an embedding that is not null, finite and not all 0."""
    return values is not None and all(map(math.isfinite, values)) and any(values)


def cosine(left: list[float], right: list[float]) -> float:
    """Return the cosine of two embeddings, each rounded to float32 once it has length 1; to 6 digits."""
    one, other = (np.array(values) / np.linalg.norm(values) for values in (left, right))
    return float(np.round(one.astype(np.float32).astype(float) @ other.astype(np.float32).astype(float), 6))


def distance(left: Row, right: Row, hashes: Sequence[str]) -> int:
    """Return the least distance between any hash of one row and any of the other."""
    return min((int.from_bytes(left[a]) ^ int.from_bytes(right[b])).bit_count() for a in hashes for b in hashes)


def _top(step: TopFraction, rows: Sequence[Row], num_input: int) -> Drops:
    base = num_input if step.of == "input" else len(rows)
    asked = int((Decimal(repr(step.fraction)) * base).quantize(Decimal(1), ROUND_HALF_UP))
    score = EXPRESSIONS[step.score]
    scored = sorted((row for row in rows if not _absent(score(row))), key=lambda row: (-score(row), key_of(row)))
    kept = scored[:asked]
    cut = score(kept[-1]) if kept else None
    found = [(row, Verdict(step.name, "no-score", None, cut)) for row in rows if _absent(score(row))]
    for row in scored[asked:]:
        tied = cut is not None and score(row) == cut
        found.append((row, Verdict(step.name, "tie-at-cut" if tied else "below-cut", score(row), cut)))
    return found


def _caption(rule: str, row: Row) -> tuple[Any, ...]:
    absent = row["caption"] is None
    score = row["clip_score"]
    return {
        "own": (),
        "fill": (absent,),
        "longest": (absent, 0 if absent else -len(row["caption"])),
        "best_score": (absent, _absent(score), 0 if _absent(score) else -score),
    }[rule]


def _most_bits(hashes: Sequence[bytes]) -> NDArray[np.bool_]:
    """Return the bits that more than half of the hashes have."""
    bits = np.stack([np.unpackbits(np.frombuffer(one, np.uint8)) for one in hashes]).astype(int)
    return np.asarray(2 * bits.sum(axis=0) > len(hashes))


def _best_copy(group: Sequence[Row], row: Row, by_centre: bool = False) -> tuple[Any, ...]:
    """Return the sort key of a row: tests passed, one after the other among those left, then quality and bytes."""

    def size(other: Row) -> float:
        return float(other["content_width"] * other["content_height"])

    def whole(other: Row) -> float:
        return size(other) / (1 - other["border"])

    def detail(other: Row) -> float:
        return float(other["fine_detail"] + 1.5 * math.log2(whole(other)))

    def shown(other: Row) -> int:
        return int(min(other["picture_quality"], other["earlier_quality"]))

    def again(other: Row) -> int:
        return int(other["encoded_quality"] - shown(other))

    def smaller(row: Row, left: Sequence[Row]) -> list[Row]:
        return [other for other in left if whole(other) <= 0.887 * whole(row) and shown(other) >= 60]

    def twice(other: Row) -> bool:
        return other["earlier_quality"] < 100 and abs(other["earlier_quality"] - other["encoded_quality"]) > 2

    def moved(other: Row) -> float:
        return float(other["moved_since"] if twice(other) else 0)

    def is_copy(row: Row, left: Sequence[Row]) -> bool:
        return twice(row) and any(abs(row["earlier_quality"] - other["encoded_quality"]) <= 1 for other in left)

    def apart(other: Row) -> int:
        if not by_centre or len(group) < 3:
            return 0
        most = _most_bits([other["pdq"] for other in group])
        return int((np.unpackbits(np.frombuffer(other["pdq"], np.uint8)) != most).sum())

    tests: list[Callable[[Row, Sequence[Row]], bool]] = [
        lambda row, left: all(row["sharpness"] >= 0.65 * other["sharpness"] for other in smaller(row, left)),
        lambda row, left: all(detail(row) >= detail(other) - 0.2 for other in smaller(row, left)),
        lambda row, left: size(row) >= 0.85 * max(map(size, left)),
        lambda row, left: all(
            row["border"] <= other["border"] + 0.06 for other in left if whole(other) <= 0.98 * whole(row)
        ),
        lambda row, left: row["colourfulness"] >= 0.6 * max(other["colourfulness"] for other in left) - 3,
        lambda row, left: any(of(row) >= 0.985 * max(map(of, left)) for of in (size, whole)),
        lambda row, left: all(row["sharpness"] >= 0.75 * other["sharpness"] for other in left if shown(other) >= 60),
        lambda row, left: apart(row) <= min(map(apart, left)) + 3,
        lambda row, left: shown(row) >= max(map(shown, left)) - 4,
        lambda row, left: not is_copy(row, left),
        lambda row, left: moved(row) <= 1.05 * min(map(moved, left)) + 0.002,
        lambda row, left: row["border"] <= min(other["border"] for other in left) + 0.03,
        lambda row, left: again(row) <= min(map(again, left)) + 1,
    ]
    passed, left = 0, list(group)
    for test in tests:
        left = [other for other in left if test(other, left)]
        if not any(other is row for other in left):
            break
        passed += 1
    score = row["clip_score"]
    rest = (-shown(row), -row["file_bytes"], _absent(score), 0 if _absent(score) else -score)
    return (-passed, *rest, key_of(row))


def _order(order: Sequence[str], row: Row) -> tuple[Any, ...]:
    keys: list[Any] = []
    for item in order:
        text, _, direction = item.rpartition(" ")
        value = EXPRESSIONS[text](row)
        keys.append((1, 0) if _absent(value) else (0, -value if direction == "desc" else value))
    return (*keys, key_of(row))


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _greater(value: float | None, limit: float) -> bool | None:
    return None if value is None else value > limit


def _or(left: bool | None, right: bool | None) -> bool | None:
    if left or right:
        return True
    return None if left is None or right is None else False
