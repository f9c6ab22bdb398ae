"""robots.txt: what a site says to crawlers, and which lines of it speak to us.

RFC 9309, with Crawl-delay, Content-Usage (draft-ietf-aipref-attach-05) and Content-Signal (contentsignals.org). The
groups that name us hold; the groups of `*` only where none does. Several groups of one name are one group. A line
that cannot be read is passed over, as a file of the web is rarely clean.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from yarl import URL

from headrace.curation.fetch.signals.paths import PathRule, PathRules
from headrace.curation.fetch.signals.usage import signal_forbids_training, usage_forbids_training
from headrace.text import MAX_SHOWN, one_line

MAX_BYTES = 500 * 1024
"""RFC 9309, section 2.5: at least so much is read; what stands behind it is not."""

_DISALLOW = ("disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw")
_PREFERENCES = {"content-usage": usage_forbids_training, "content-signal": signal_forbids_training}
_OF_THE_SITE = ("sitemap", "sitemaps", "site-map", "host")
_LINE_END = re.compile(r"\r\n|\r|\n")
_NO_COLON = re.compile(r"(user-?agent|allow|disallow|crawl-delay)[ \t]+(.*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Line:
    field: str
    value: str
    number: int
    text: str

    @property
    def evidence(self) -> str:
        return f"robots.txt line {self.number}: {one_line(self.text)[:MAX_SHOWN]}".encode("ascii", "replace").decode()


@dataclass(slots=True)
class _Group:
    agents: set[str] = field(default_factory=set)
    lines: list[_Line] = field(default_factory=list)


class Robots:
    """One site's robots.txt, as far as it speaks to `agents`, and to each of `others` where it names that one."""

    def __init__(self, text: str, agents: Sequence[str], others: Sequence[str] = ()) -> None:
        groups = list(_groups(text))
        named = _lines_for(groups, agents)
        own = (_lines_for(groups, ("*",)) or []) if named is None else named
        further = [_lines_for(groups, (agent,)) for agent in others]
        parts = [own, *(lines for lines in further if lines)]
        self._access = [PathRules(_access_rules(lines)) for lines in parts]
        self._preferences = {
            name: [PathRules(_preference_rules(lines, name)) for lines in parts] for name in _PREFERENCES
        }
        self.num_rules = sum(rules.num_rules for kind in (self._access, *self._preferences.values()) for rules in kind)
        self.crawl_delay_seconds = max((_delay(line) for line in own if line.field == "crawl-delay"), default=0.0)

    def disallows(self, url: URL) -> str | None:
        """Return the line that disallows `url`, or None."""
        return _first(self._access, url)

    def reserves(self, url: URL, name: str) -> str | None:
        """Return the `content-usage` or `content-signal` line (`name`) that keeps `url` from training, or None."""
        return _first(self._preferences[name], url)


def robots_agent(user_agent: str) -> str | None:
    """Return the name by which a robots.txt may speak to this user agent: its first that says more than `a browser`."""
    for name in re.findall(r"[A-Za-z][A-Za-z0-9_-]*", user_agent):
        if name.lower() not in ("mozilla", "compatible"):
            return str(name.lower())
    return None


def _first(rules: Sequence[PathRules], url: URL) -> str | None:
    return next((found for part in rules if (found := part.refusal(url)) is not None), None)


def _groups(text: str) -> Iterator[_Group]:
    group: _Group | None = None
    for line in _lines(text):
        if line.field == "user-agent":
            if group is None or group.lines:
                if group is not None:
                    yield group
                group = _Group()
            group.agents.add(_agent(line.value))
        elif group is not None and line.field not in _OF_THE_SITE:
            group.lines.append(line)  # also a line nobody knows: it ends the names of its group
    if group is not None:
        yield group


def _lines(text: str) -> Iterator[_Line]:
    for number, raw in enumerate(_LINE_END.split(text.removeprefix("\ufeff")), 1):
        content = raw.partition("#")[0].strip()
        name, colon, value = content.partition(":")
        if not colon:
            found = _NO_COLON.fullmatch(content)
            if found is None:
                continue
            name, value = found[1], found[2]
        name = name.strip().lower().replace(" ", "-")
        name = {"useragent": "user-agent"}.get(name, "disallow" if name in _DISALLOW else name)
        yield _Line(name, value.strip(), number, content)


def _agent(value: str) -> str:
    """Return the product token of a User-agent line, lower case; `*` for everyone."""
    token = re.split(r"[/\s]", value, maxsplit=1)[0].lower()
    return token.rstrip("*") or "*" if token else ""


def _lines_for(groups: Sequence[_Group], agents: Sequence[str]) -> list[_Line] | None:
    """Return the lines of all groups that name one of `agents`; None if no group does."""
    wanted = {agent.lower() for agent in agents}
    speaking = [group for group in groups if group.agents & wanted]
    return [line for group in speaking for line in group.lines] if speaking else None


def _access_rules(lines: Sequence[_Line]) -> list[PathRule]:
    return [
        PathRule(line.value, line.field == "disallow", line.evidence)
        for line in lines
        if line.field in ("allow", "disallow") and line.value
    ]


def _preference_rules(lines: Sequence[_Line], name: str) -> list[PathRule]:
    """Return a rule for each path; of several lines on one path, one that refuses decides (AIPREF, section 5.1)."""
    rules: dict[str, PathRule] = {}
    for line in lines:
        if line.field != name:
            continue
        path, stated = "", line.value
        if stated.startswith("/"):
            path, _, stated = stated.replace("\t", " ").partition(" ")
        refuses = _PREFERENCES[name]([stated]) is True
        if path not in rules or (refuses and not rules[path].refuses):
            rules[path] = PathRule(path, refuses, line.evidence)
    # Without a path a line speaks of all that no other rule matches: it is the shortest of all.
    everywhere = rules.pop("", None)
    if everywhere is not None and "/" not in rules:
        rules["/"] = PathRule("/", everywhere.refuses, everywhere.evidence)
    return list(rules.values())


def _delay(line: _Line) -> float:
    try:
        seconds = float(line.value)
    except ValueError:
        return 0.0
    return seconds if 0.0 < seconds < float("inf") else 0.0
