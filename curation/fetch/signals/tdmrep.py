"""/.well-known/tdmrep.json: which paths of a site are reserved from text and data mining.

W3C TDM Reservation Protocol, final report of 2024-05-10: a list of rules; the first whose location matches decides. A
file that cannot be read says nothing, as the report has it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from yarl import URL

from headrace.curation.fetch.signals.paths import asked, counted, matches
from headrace.text import MAX_SHOWN, one_line

FILE = "/.well-known/tdmrep.json"
MAX_RULES = 1000


@dataclass(frozen=True, slots=True)
class _Rule:
    location: str
    reserved: bool
    policy: str


class Tdmrep:
    """One site's file."""

    def __init__(self, text: str) -> None:
        self._rules = list(_rules(text))[:MAX_RULES]

    @property
    def num_rules(self) -> int:
        """Rules that are kept, as `counted` counts."""
        return counted(rule.location + rule.policy for rule in self._rules)

    def reserves(self, url: URL) -> str | None:
        """Return the rule that reserves `url`, with the address of its policy, or None."""
        text = asked(url)
        rule = next((rule for rule in self._rules if matches(rule.location, text)), None)
        if rule is None or not rule.reserved:
            return None
        policy = f", policy {rule.policy}" if rule.policy else ""
        found = f"tdmrep.json: location {rule.location} is reserved{policy}"
        return one_line(found)[: 2 * MAX_SHOWN].encode("ascii", "replace").decode()


def _rules(text: str) -> Iterator[_Rule]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return
    for record in parsed if isinstance(parsed, list) else [parsed]:
        if isinstance(record, dict) and _is_path(record.get("location")):
            policy = record.get("tdm-policy")
            reserved = record.get("tdm-reservation") in (1, "1") and record.get("tdm-reservation") is not True
            yield _Rule(record["location"], reserved, policy if isinstance(policy, str) else "")


def _is_path(location: Any) -> bool:
    return isinstance(location, str) and location[:1] in ("/", "*") and "\n" not in location and "\r" not in location
