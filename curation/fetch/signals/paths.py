"""Rules on the paths of one site: the longest pattern that matches a URL decides.

Patterns are those of robots.txt (RFC 9309, section 2.2.2): a prefix, `*` for anything, `$` for the end; both sides are
compared in one spelling of their percent-codes. Protego matches them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from protego import Protego
from yarl import URL

MAX_NAMED_RULES = 1000
"""Beyond so many rules the one that decided is not looked for: each is asked by itself."""

LONG_PATTERN = 512
"""Letters: a pattern of so many is not kept; a site may have one of 500 KiB."""

_AGENT = "any"


@dataclass(frozen=True, slots=True)
class PathRule:
    """One pattern, and whether it refuses."""

    pattern: str
    refuses: bool
    evidence: str
    """The line it stands in, and where."""


class PathRules:
    """All rules of one kind on one site. Of two equal patterns the one that allows decides (RFC 9309)."""

    def __init__(self, rules: Sequence[PathRule]) -> None:
        self.num_rules = counted(rule.pattern for rule in rules)
        self._refusing = sorted((rule for rule in rules if rule.refuses), key=lambda rule: -len(rule.pattern))
        lines = [f"{'Disallow' if rule.refuses else 'Allow'}: {rule.pattern}" for rule in rules]
        self._all = Protego.parse("\n".join([f"User-agent: {_AGENT}", *lines])) if self._refusing else None

    def refusal(self, url: URL) -> str | None:
        """Return the evidence of the rule that refuses `url`, or None."""
        text = asked(url)
        if self._all is None or self._all.can_fetch(text, _AGENT):
            return None
        if len(self._refusing) <= MAX_NAMED_RULES:
            for rule in self._refusing:
                if matches(rule.pattern, text):
                    return rule.evidence
        return f"{self._refusing[0].evidence} or another of {len(self._refusing)} such rules"


def counted(patterns: Iterable[str]) -> int:
    """Return the number of rules, for what they cost: a long one counts for several."""
    return sum(1 + len(pattern) // LONG_PATTERN for pattern in patterns)


def asked(url: URL) -> str:
    """Return path and query of `url` as they are sent, behind a host that no path can be taken for."""
    return f"http://site{url.raw_path_qs}"


def matches(pattern: str, url: str) -> bool:
    """True if `pattern` matches `url`, which `asked` made."""
    rule = _one_rule(pattern) if len(pattern) < LONG_PATTERN else _one_rule.__wrapped__(pattern)
    return not rule.can_fetch(url, _AGENT)


@lru_cache(maxsize=4096)
def _one_rule(pattern: str) -> Protego:
    return Protego.parse(f"User-agent: {_AGENT}\nDisallow: {pattern}")
