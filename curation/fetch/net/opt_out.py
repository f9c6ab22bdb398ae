"""Has the owner of an image opted out, by what its server sends with it?

X-Robots-Tag with noai, noimageai, noindex, noimageindex or none, for everyone or for our name; and TDM-Reservation: 1
(W3C TDM Reservation Protocol). `otherbot: noai, noindex` speaks to otherbot up to the end of that header
line, and `unavailable_after: DATE` is a directive with a value, not a bot.

TODO(robots): robots.txt, fetched once for each host; matters before a list is fetched that its owners did not expect.
"""

import re
from collections.abc import Iterable

from headrace.text import MAX_SHOWN, printable

DIRECTIVES = frozenset(("noai", "noimageai", "noindex", "noimageindex", "none"))
OWN_TOKEN = "headrace"

_VALUED = frozenset(("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"))
_TOKEN = re.compile(r"[A-Za-z_-]+")


def user_agent_tokens(user_agent: str) -> frozenset[str]:
    """Return the names that a server may address us by: ours, and the words of the configured user agent."""
    return frozenset((OWN_TOKEN, "*", *(word.lower() for word in _TOKEN.findall(user_agent))))


def opt_out(robots_tags: Iterable[str], tdm_reservations: Iterable[str], tokens: frozenset[str]) -> str | None:
    """Return the header line that opts out, or None. Each argument holds the values of all header lines of its name."""
    for value in robots_tags:
        if _forbids(value, tokens):
            return f"X-Robots-Tag: {_shown(value)}"
    for value in tdm_reservations:
        if any(part.strip() == "1" for part in value.split(",")):
            return f"TDM-Reservation: {_shown(value)}"
    return None


def _forbids(value: str, tokens: frozenset[str]) -> bool:
    addressed = True
    for part in value.lower().split(","):
        name, colon, rest = part.partition(":")
        if colon and name.strip() in _VALUED:
            continue
        if colon:
            addressed, part = name.strip() in tokens, rest
        if addressed and part.strip() in DIRECTIVES:
            return True
    return False


def _shown(value: str) -> str:
    return printable(value[:MAX_SHOWN]).encode("ascii", "replace").decode()
