"""Which signals of the owners of images are obeyed."""

import re
from dataclasses import dataclass

_AGENT = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalsConfig:
    """Which signals are read and obeyed; each costs what it says. `fetch.honor_opt_out: false` obeys none."""

    robots_txt: bool = True
    """Ask for nothing that the site's robots.txt disallows (RFC 9309). One request for each site."""
    crawl_delay_seconds: float = 2.0
    """Obey Crawl-delay of robots.txt up to so many seconds between two requests of one process; 0: not at all."""
    x_robots_tag: bool = True
    """Leave images whose answer says X-Robots-Tag noai, noimageai, noindex, noimageindex or none to us or to all."""
    tdm_header: bool = True
    """Leave images whose answer says TDM-Reservation 1 (W3C TDM Reservation Protocol)."""
    tdm_file: bool = True
    """Ask for nothing that the site's /.well-known/tdmrep.json reserves. One request for each site."""
    content_usage: bool = True
    """Leave what Content-Usage says train-ai=n of, in the answer or in robots.txt (IETF AIPREF)."""
    content_signal: bool = True
    """Leave what Content-Signal says ai-train=no of, in the answer or in robots.txt (contentsignals.org)."""
    obey_agents: tuple[str, ...] = ()
    """Further crawlers whose groups of robots.txt bind us too, for example CCBot, GPTBot, img2dataset."""
    cache_hours: float = 24.0
    """A site's files are read again by the same job after so many hours; RFC 9309 asks for 24 at most."""

    def __post_init__(self) -> None:
        for name, high in (("crawl_delay_seconds", 3600.0), ("cache_hours", 8760.0)):
            if not 0.0 <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be 0 to {high:g}, got {getattr(self, name)}")
        for agent in self.obey_agents:
            if not _AGENT.fullmatch(agent):
                raise ValueError(f"obey_agents: {agent!r} is not the name of a crawler, for example CCBot")

    @property
    def reads_robots(self) -> bool:
        """True if robots.txt is asked for: several signals stand in it."""
        return self.robots_txt or self.content_usage or self.content_signal or self.crawl_delay_seconds > 0


NO_SIGNALS = SignalsConfig(
    robots_txt=False,
    crawl_delay_seconds=0.0,
    x_robots_tag=False,
    tdm_header=False,
    tdm_file=False,
    content_usage=False,
    content_signal=False,
)
