"""Select again, row by row in plain Python: what the fast one is compared with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from headrace.curation.select.steps import ExactDuplicates, NearDuplicates, Rule, SelectStep, TopFraction, Unsafe

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
    for row in map(dict, rows):
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
    for group in groups.values():
        order = {key_of(row): _order(step.order, row) if step.order else _best_copy(group, row) for row in group}
        best, *rest = sorted(group, key=lambda row: order[key_of(row)])
        donor = min(group, key=lambda row: (*_caption(step.captions, row), *order[key_of(row)]))
        if donor is not best and donor["caption"] is not None:
            handed = {name: donor[name] for name in CAPTION_COLUMNS}
            taken.append((best, {**handed, "caption_of": donor.get("caption_of") or donor["uid"]}))
        for row in rest:
            apart = distance(row, best, step.hashes)
            reason = "near-duplicate" if apart <= step.distance else "near-duplicate-chain"
            found.append((row, Verdict(step.name, reason, apart, step.distance, best["uid"])))
    return found


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


def _best_copy(group: Sequence[Row], row: Row) -> tuple[Any, ...]:
    """Return the sort key of a row: tests passed, one after the other among those left, then quality and bytes."""
    sharpest = max(other["sharpness"] for other in group)

    def size(other: Row) -> float:
        blown_up = min(1.0, (other["sharpness"] / (0.75 * max(sharpest, 0.001))) ** 8)
        return float(other["content_width"] * other["content_height"] * blown_up)

    def again(other: Row) -> int:
        return int(other["encoded_quality"] - other["picture_quality"])

    tests: list[Callable[[Row, Sequence[Row]], bool]] = [
        lambda row, left: size(row) >= 0.85 * max(map(size, left)),
        lambda row, left: row["border"] <= min(other["border"] for other in left) + 0.03,
        lambda row, left: row["colourfulness"] >= 0.6 * max(other["colourfulness"] for other in left) - 3,
        lambda row, left: row["picture_quality"] >= max(other["picture_quality"] for other in left) - 4,
        lambda row, left: again(row) <= min(map(again, left)) + 1,
    ]
    passed, left = 0, list(group)
    for test in tests:
        left = [other for other in left if test(other, left)]
        if not any(other is row for other in left):
            break
        passed += 1
    score = row["clip_score"]
    rest = (-row["picture_quality"], -row["file_bytes"], _absent(score), 0 if _absent(score) else -score)
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
    # DuckDB sorts NaN above every number.
    return None if value is None else math.isnan(value) or value > limit


def _or(left: bool | None, right: bool | None) -> bool | None:
    if left or right:
        return True
    return None if left is None or right is None else False
