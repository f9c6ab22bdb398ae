"""What a recipe says about the report."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """What the report shows."""

    title: str = ""
    """Heading of the page; empty: the folder's name."""
    samples: int = 12
    """Pictures in each gallery."""
    thumbnail_pixels: int = 160
    """Longer side of a thumbnail."""

    def __post_init__(self) -> None:
        if not 0 <= self.samples <= 200:
            raise ValueError(f"samples must be 0..200, got {self.samples}")
        if not 16 <= self.thumbnail_pixels <= 512:
            raise ValueError(f"thumbnail_pixels must be 16..512, got {self.thumbnail_pixels}")
