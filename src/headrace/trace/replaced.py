"""Which sample was given in the place of a damaged one: what the quarantine files say, as far as the record bears it.

Steps that were done again have their lines twice, a fault of the way may have gone by the second time, and several runs
may write into one file. So a line counts if the sample it names is the one planned at its position, and if the step's
record says that as many samples were replaced; where both leave a choice, the step's digest decides.
"""

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace import urlpath
from headrace.pipeline.seen import digest_of, row_hashes, text_of
from headrace.trace.history import Recorded
from headrace.trace.lookup import Opened

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]

MAX_CHOICES = 4096
"""Combinations of one step's stories that are compared with its digest."""
LOOKED_UP_AT_ONCE = 1 << 16
"""Stories whose keys are looked up together: each index is read once for them, not once a step."""


@dataclass(frozen=True, slots=True)
class Story:
    """What a quarantine file tells of one position, once."""

    key: str
    """Of the sample that was damaged."""
    shard: str
    reason: str
    message: str
    num_damaged: int
    """The sample and the replacements that were damaged too: the next one of the lane was given."""
    replaced_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Replaced:
    """A position whose sample was damaged, and what the run saw there."""

    position: int
    source: int
    planned: int
    """Number of the damaged sample in its source."""
    given: int
    """Number of the sample that was seen in its place."""
    story: Story


@dataclass(slots=True)
class Replacements:
    """The replaced samples of a history, step by step."""

    opened: Opened
    stories: Mapping[int, Sequence[Story]]
    """By position, in the order in which they were written."""
    _steps: dict[int, list[int]] = field(init=False)
    _given: dict[str, set[int]] = field(init=False)
    _known: dict[int, tuple[Replaced, ...] | None] = field(init=False, default_factory=dict)
    _planned: dict[int, tuple[int, int, str]] = field(init=False, default_factory=dict)
    """By position: source, number and key of the sample that is planned there."""
    _next: dict[tuple[int, int], tuple[int, str]] = field(init=False, default_factory=dict)
    """By position and damaged samples there: number and key of the sample that is given then."""

    def __post_init__(self) -> None:
        self._steps, self._given = {}, {}
        for position in sorted(self.stories):
            for story in self.stories[position]:
                self._note(self.opened.history.step_of(position), {position: story})

    @property
    def steps(self) -> list[int]:
        """The steps with a line in a quarantine file, or that were learnt of."""
        return list(self._steps)

    def learn(self, step: int, stories: Mapping[int, Story]) -> None:
        """Take stories that no file tells for those of a step, if they are proven by its record."""
        recorded = self.opened.history.recorded(step)
        if recorded is None or len(stories) != recorded.replaced:
            return
        self._known[step] = self._by_digest(step, {place: [one] for place, one in stories.items()}, recorded)
        if self._known[step] is not None:
            self._note(step, stories)

    def not_told(self, last: int) -> dict[int, int]:
        """Return, of the steps up to `last` whose replaced samples cannot be named, how many there are in each."""
        counts = {
            step: int(count)
            for line in self.opened.history.lines
            for step, count in enumerate(line.get("replaced") or (), line["first_step"])
            if count and step <= last
        }
        self.look_up(counts)
        return {step: count for step, count in counts.items() if self.of_step(step) is None}

    def look_up(self, steps: Iterable[int]) -> None:
        """Look up at once what `of_step` will need of steps: for many, that reads each index once, not once a step."""
        told = [
            (position, story)
            for step in steps
            if step not in self._known
            for position in self._steps.get(step, ())
            for story in self.stories.get(position, ())
        ]
        for first in range(0, len(told), LOOKED_UP_AT_ONCE):
            some = told[first : first + LOOKED_UP_AT_ONCE]
            self._look_up_planned(position for position, _ in some)
            self._look_up_next((position, story.num_damaged) for position, story in some if story.replaced_by)

    def of_step(self, step: int) -> tuple[Replaced, ...] | None:
        """Return the replaced samples of a step; None where what is written down does not say which."""
        if step not in self._known:
            self._known[step] = self._settle(step)
        return self._known[step]

    def steps_given(self, keys: Iterable[str]) -> set[int]:
        """Return the steps in which, by a quarantine file, a sample with one of `keys` stood in for another."""
        return {step for key in keys for step in self._given.get(key, ())}

    def _note(self, step: int, stories: Mapping[int, Story]) -> None:
        places = self._steps.setdefault(step, [])
        places += [position for position in sorted(stories) if position not in places[-1:]]
        for story in stories.values():
            self._given.setdefault(story.replaced_by, set()).add(step)

    def _settle(self, step: int) -> tuple[Replaced, ...] | None:
        told = self._of_this_run(self._steps.get(step, []))
        recorded = self.opened.history.recorded(step)
        if recorded is None:  # nobody wrote down how many: the last time counts
            return self._chosen({position: stories[-1] for position, stories in told.items()})
        if len(told) == recorded.replaced and all(len(stories) == 1 for stories in told.values()):
            return self._chosen({position: stories[0] for position, stories in told.items()})
        if recorded.replaced == 0:
            return ()
        if len(told) < recorded.replaced:
            return None  # the files lack lines
        return self._by_digest(step, told, recorded)

    def _of_this_run(self, positions: Sequence[int]) -> dict[int, list[Story]]:
        """Return the stories whose damaged sample is the one planned there, each once."""
        self._look_up_planned(positions)
        result: dict[int, list[Story]] = {}
        for position in positions:
            key = self._planned[position][2]
            stories = [story for story in dict.fromkeys(self.stories[position]) if story.key == key]
            if stories:
                result[position] = stories
        return result

    def _chosen(self, stories: Mapping[int, Story]) -> tuple[Replaced, ...] | None:
        """Return what stories tell; None where the sample that the order gives next is not the one they name."""
        positions = sorted(position for position, story in stories.items() if story.replaced_by)
        places = [(position, stories[position].num_damaged) for position in positions]
        self._look_up_planned(positions)
        self._look_up_next(places)
        if any(self._next[place][1] != stories[place[0]].replaced_by for place in places):
            return None
        result = []
        for place in places:
            source, planned, _ = self._planned[place[0]]
            given, story = self._next[place][0], stories[place[0]]
            result.append(Replaced(position=place[0], source=source, planned=planned, given=given, story=story))
        return tuple(result)

    def _look_up_planned(self, positions: Iterable[int]) -> None:
        missing = sorted(set(positions) - self._planned.keys())
        if missing:
            placed = self.opened.placed(np.array(missing, np.int64))
            keys = self.opened.keys(placed.source, placed.sample)
            found = zip(placed.source.tolist(), placed.sample.tolist(), keys, strict=True)
            self._planned.update(zip(missing, found, strict=True))

    def _look_up_next(self, places: Iterable[tuple[int, int]]) -> None:
        missing = sorted(set(places) - self._next.keys())
        if missing:
            source, sample = np.array([self.opened.replacement(*place) for place in missing], np.int64).T
            found = zip(sample.tolist(), self.opened.keys(source, sample), strict=True)
            self._next.update(zip(missing, found, strict=True))

    def _by_digest(
        self, step: int, told: Mapping[int, Sequence[Story]], recorded: Recorded
    ) -> tuple[Replaced, ...] | None:
        """Return the one choice of stories with which the step has its digest; None = no choice has, or too many."""
        position = np.array(self.opened.history.positions(step), np.int64)
        placed = self.opened.placed(position)
        keys = self.opened.keys(placed.source, placed.sample)
        for choice in itertools.islice(_choices(told, recorded.replaced), MAX_CHOICES):
            given = list(keys)
            for place, story in choice.items():
                given[place - int(position[0])] = story.replaced_by
            if text_of(*digest_of(row_hashes(position, placed.source, given))) == recorded.digest:
                return self._chosen(choice)
        return None


def _choices(told: Mapping[int, Sequence[Story]], count: int) -> Iterator[dict[int, Story]]:
    """Yield every way in which `count` of the positions were replaced; what was written last comes first."""
    for positions in itertools.combinations(sorted(told, reverse=True), count):
        for stories in itertools.product(*(tuple(reversed(told[position])) for position in positions)):
            yield dict(zip(positions, stories, strict=True))


def read_replacements(opened: Opened) -> Replacements:
    """Read the quarantine files of a history."""
    stories: dict[int, list[Story]] = {}
    for name in opened.history.quarantines:
        for file in quarantine_files(name):
            for position, story in _read(file):
                stories.setdefault(position, []).append(story)
    return Replacements(opened, stories)


def quarantine_files(name: str) -> list[Path]:
    """Return the quarantine file of that name and those of its ranks (NAME.0, NAME.1) that are there."""
    path = Path(name)
    ranks = [file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdecimal()]
    return [file for file in (path, *sorted(ranks, key=lambda file: int(file.suffix[1:]))) if file.is_file()]


def _read(file: Path) -> Iterator[tuple[int, Story]]:
    """Yield (position, story): the lines of one position that follow each other, up to its own sample again."""
    lines: list[dict[str, Any]] = []
    skipped = 0
    with file.open(encoding="utf-8", errors="replace") as texts:
        for text in texts:
            line = _parse(text)
            if line is None:
                skipped += 1
                continue
            if lines and (line["position"] != lines[0]["position"] or _sample(line) == _sample(lines[0])):
                yield _story(lines)
                lines = []
            lines.append(line)
    if lines:
        yield _story(lines)
    if skipped:
        log.warning("%s: %d lines are none of a quarantine file, and were passed over", file, skipped)


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        line["position"] = int(line["position"])
        return line if all(isinstance(line[name], str) for name in _TEXTS) and line["position"] >= 0 else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


_TEXTS = ("key", "shard", "reason", "message", "replaced_by")


def _sample(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return urlpath.basename(line["shard"]), line["key"], line.get("offset")


def _story(lines: Sequence[Mapping[str, Any]]) -> tuple[int, Story]:
    own = lines[0]
    shard = urlpath.basename(own["shard"])
    return own["position"], Story(own["key"], shard, own["reason"], own["message"], len(lines), own["replaced_by"])
