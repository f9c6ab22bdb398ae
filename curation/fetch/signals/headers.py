"""Has the owner of an image opted out, by what its server sends with it?

X-Robots-Tag with noai, noimageai, noindex, noimageindex or none, for everyone or for our name; TDM-Reservation: 1 (W3C
TDM Reservation Protocol); Content-Usage: train-ai=n; Content-Signal: ai-train=no. `otherbot: noai, noindex` speaks to
otherbot up to the end of that header line, and `unavailable_after: DATE` is a directive with a value, not a bot.
"""

import re
from collections.abc import Callable

from headrace.curation.fetch.signals.config import SignalsConfig
from headrace.curation.fetch.signals.usage import signal_forbids_training, usage_forbids_training
from headrace.text import MAX_SHOWN, printable

DIRECTIVES = frozenset(("noai", "noimageai", "noindex", "noimageindex", "none"))
OWN_TOKEN = "headrace"

_VALUED = frozenset(("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"))
_TOKEN = re.compile(r"[A-Za-z_-]+")


def user_agent_tokens(user_agent: str) -> frozenset[str]:
    """Return the names that a server may address us by: ours, and the words of the configured user agent."""
    return frozenset((OWN_TOKEN, "*", *(word.lower() for word in _TOKEN.findall(user_agent))))


def opt_out(values: Callable[[str], list[str]], tokens: frozenset[str], signals: SignalsConfig) -> str | None:
    """Return the header line that opts out, or None. `values` gives the values of all header lines of a name."""
    if signals.x_robots_tag:
        for value in values("x-robots-tag"):
            if _forbids(value, tokens):
                return f"X-Robots-Tag: {_shown(value)}"
    if signals.tdm_header:
        for value in values("tdm-reservation"):
            if any(part.strip() == "1" for part in value.split(",")):
                policy = "".join(f", TDM-Policy: {_shown(policy)}" for policy in values("tdm-policy")[:1])
                return f"TDM-Reservation: {_shown(value)}{policy}"
    if signals.content_usage and usage_forbids_training(values("content-usage")):
        return f"Content-Usage: {_shown(', '.join(values('content-usage')))}"
    if signals.content_signal and signal_forbids_training(values("content-signal")):
        return f"Content-Signal: {_shown(', '.join(values('content-signal')))}"
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
