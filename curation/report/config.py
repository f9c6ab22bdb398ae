"""What a recipe says about the report."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """What the report shows."""

    title: str = ""
    """Heading of the page; empty: the folder's name."""
    pictures: Literal["harmless", "all", "none"] = "harmless"
    """`harmless`: only pictures whose faces were looked for and are blurred; `all`: also those whose faces nobody
    looked for, for data that holds no people; `none`. What an `unsafe` step drops or has not scored is never shown."""
    samples: int = 12
    """Pictures in each gallery."""
    pairs: int = 40
    """Pairs of each step that drops copies; every one if it dropped no more."""
    rows: int = 200
    """Dropped rows listed of each step; every one if it dropped no more."""
    thumbnail_pixels: int = 320
    """Longer side of a thumbnail as it is stored; the page shows it smaller until it is enlarged."""

    def __post_init__(self) -> None:
        if not 0 <= self.samples <= 200:
            raise ValueError(f"samples must be 0..200, got {self.samples}")
        if not 0 <= self.pairs <= 1000:
            raise ValueError(f"pairs must be 0..1000, got {self.pairs}")
        if not 0 <= self.rows <= 5000:
            raise ValueError(f"rows must be 0..5000, got {self.rows}")
        if not 16 <= self.thumbnail_pixels <= 1024:
            raise ValueError(f"thumbnail_pixels must be 16..1024, got {self.thumbnail_pixels}")

    @property
    def num_samples(self) -> int:
        """Pictures in each gallery, none where none are shown."""
        return self.samples if self.pictures != "none" else 0
