"""What the user chooses of an augmentation: window, flip, colours, and how many views of every picture."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

MAX_IMAGE_SIZE = 4096

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)


def _check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """How a picture becomes a square; all parameters are functions of (seed, position, view)."""

    crop: Literal["random", "center", "pad"] = "random"
    """`random` is torchvision's RandomResizedCrop; `center` resizes the short side and cuts the middle; `pad` resizes
    the long side, keeps all of the picture, and fills what is left over."""
    center_fraction: float = 1.0
    """Side of a centre crop as a share of the short side; 0.875 is Resize(256) and CenterCrop(224)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of a random crop's area, as a share of the picture's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of a random crop's width over height, drawn evenly in its logarithm."""
    pad_value: int = 0
    """Level of red, green and blue that `pad` fills with."""
    interpolation: Interpolation = "bilinear"
    """How a window is resized, both widened when shrinking (antialias): `bilinear` or `bicubic`."""
    flip: bool = True
    """Mirror every second picture."""
    colour_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strengths of brightness, contrast, saturation and hue, as torchvision's ColorJitter: factors of 1 - b to 1 + b,
    hue turned by -h to h of the circle. The order of the four is drawn too."""
    colour_jitter_probability: float = 1.0
    """Share of the pictures whose colours are jittered."""
    grayscale_probability: float = 0.0
    """Share of the pictures that lose their colour."""
    blur_probability: float = 0.0
    """Share of the pictures that are blurred by a Gaussian."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the Gaussian's sigma, pixels of the delivered square."""
    blur_kernel: int = 0
    """Side of the Gaussian's kernel, pixels, odd; 0 = a tenth of the square's side (23 at 224), at least 3."""
    solarize_probability: float = 0.0
    """Share of the pictures whose bright values are inverted."""
    solarize_threshold: int = 128
    """Values from this one on become 255 - value."""

    def __post_init__(self) -> None:
        low, high = self.scale
        _check(0 < low <= high <= 1, f"scale must be a range within 0..1, got {low} and {high}")
        low, high = self.ratio
        _check(0.01 <= low <= high <= 100, f"ratio must be a range within 0.01..100, got {low} and {high}")
        _check(0 < self.center_fraction <= 1, f"center_fraction must be within 0..1, got {self.center_fraction}")
        _check(0 <= self.pad_value <= 255, f"pad_value must be 0..255, got {self.pad_value}")
        self._check_colours()

    def _check_colours(self) -> None:
        strengths, most = self.colour_jitter, (1, 1, 1, 0.5)
        _check(
            all(0 <= strength <= bound for strength, bound in zip(strengths, most, strict=True)),
            "colour_jitter must be brightness, contrast and saturation of 0..1 and hue of 0..0.5, "
            f"got {', '.join(map(str, strengths))}",
        )
        for name in ("colour_jitter", "grayscale", "blur", "solarize"):
            share = getattr(self, f"{name}_probability")
            _check(0 <= share <= 1, f"{name}_probability must be 0..1, got {share}")
        low, high = self.blur_sigma
        _check(0 < low <= high <= 100, f"blur_sigma must be a range over 0 to 100, got {low} and {high}")
        odd = self.blur_kernel == 0 or (self.blur_kernel % 2 == 1 and 3 <= self.blur_kernel <= 255)
        _check(odd, f"blur_kernel must be 0 or odd, 3..255, got {self.blur_kernel}")
        _check(0 <= self.solarize_threshold <= 255, f"solarize_threshold must be 0..255, got {self.solarize_threshold}")

    @property
    def jitters(self) -> bool:
        """Whether any picture's colours are jittered."""
        return self.colour_jitter_probability > 0 and any(self.colour_jitter)

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that play no part in the pictures, of those that were added since states name the augmentation."""
        fields: tuple[str, ...] = () if self.crop == "center" and self.center_fraction != 1 else ("center_fraction",)
        if self.crop != "pad":
            fields += ("pad_value",)
        if self.interpolation == "bilinear":
            fields += ("interpolation",)
        if not self.jitters:
            fields += ("colour_jitter", "colour_jitter_probability")
        if not self.grayscale_probability:
            fields += ("grayscale_probability",)
        if not self.blur_probability:
            fields += ("blur_probability", "blur_sigma", "blur_kernel")
        if not self.solarize_probability:
            fields += ("solarize_probability", "solarize_threshold")
        return fields

    @property
    def recolours(self) -> bool:
        """Whether any picture's colours are changed."""
        return self.jitters or max(self.grayscale_probability, self.blur_probability, self.solarize_probability) > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One way in which every picture is delivered, or several of the same kind."""

    count: int = 1
    """So many views of this kind, each with a window of its own."""
    image_size: int = 0
    """Side of the square, pixels; 0 = the mixture's `image_size`."""
    augment: Augment | None = None
    """How a picture becomes this square; null = the mixture's `augment`."""

    def __post_init__(self) -> None:
        _check(self.count >= 1, f"count must be at least 1, got {self.count}")
        _check(0 <= self.image_size <= MAX_IMAGE_SIZE, f"image_size must be 0..{MAX_IMAGE_SIZE}, got {self.image_size}")
