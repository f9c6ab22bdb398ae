"""What the user chooses of an augmentation: window, flip, colours, erasing, and how many views of every picture."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

MAX_IMAGE_SIZE = 4096

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)


def _check(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class RandAugment:
    """Operations drawn from fifteen, behind the flip and before other colours: arXiv:1909.13719, as timm has them.

    The defaults are `rand-m9-mstd0.5-inc1`. What moves pixels is resampled by the augment's `interpolation`.
    """

    num_ops: int = 2
    """So many operations are drawn, one after the other; the same may be drawn twice."""
    magnitude: float = 9.0
    """How strong they are, 0 to 10."""
    magnitude_std: float = 0.5
    """Each operation's magnitude is drawn from a normal distribution of this deviation, kept within 0 to 10."""
    increasing: bool = True
    """Every operation changes more with more magnitude; timm's `inc1`. False: some change less."""
    probability: float = 0.5
    """Share of the drawn operations that are done."""
    translate: float = 0.45
    """Furthest move, as a share of the side."""
    fill: tuple[int, int, int] = (124, 116, 104)
    """Levels of red, green and blue where a move leaves nothing: ImageNet's mean."""

    def __post_init__(self) -> None:
        _check(1 <= self.num_ops <= 8, f"num_ops must be 1..8, got {self.num_ops}")
        _check(0 <= self.magnitude <= 10, f"magnitude must be 0..10, got {self.magnitude}")
        _check(0 <= self.magnitude_std <= 10, f"magnitude_std must be 0..10, got {self.magnitude_std}")
        _check(0 < self.probability <= 1, f"probability must be over 0 to 1, got {self.probability}")
        _check(0 <= self.translate <= 1, f"translate must be 0..1, got {self.translate}")
        _check(all(0 <= level <= 255 for level in self.fill), f"fill must be levels of 0..255, got {self.fill}")


ErasingMode: TypeAlias = Literal["pixel", "rand", "const"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomErasing:
    """Rectangles that are overwritten, behind everything else: arXiv:1708.04896, as timm has it.

    timm erases normalised pictures; here the noise is of whole levels and ends at 0 and 255.
    """

    probability: float = 0.25
    """Share of the pictures that are erased in."""
    mode: ErasingMode = "pixel"
    """`pixel`: normal noise of `mean` and `std` in every value; `rand`: one such colour; `const`: the mean."""
    min_area: float = 0.02
    """Smallest rectangle, as a share of the picture."""
    max_area: float = 1 / 3
    """Largest one."""
    min_aspect: float = 0.3
    """Height over width lies between this and its inverse, drawn evenly in its logarithm."""
    count: int = 1
    """A picture has 1 to so many rectangles, drawn evenly; with several each is so much smaller."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue, 0 to 1: ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Deviation of the noise; with `mean` what pictures are normalised by."""

    def __post_init__(self) -> None:
        _check(0 < self.probability <= 1, f"probability must be over 0 to 1, got {self.probability}")
        least, most = self.min_area, self.max_area
        _check(0 < least <= most <= 1, f"min_area and max_area must be a range within 0..1, got {least} and {most}")
        _check(0.01 <= self.min_aspect <= 1, f"min_aspect must be 0.01..1, got {self.min_aspect}")
        _check(1 <= self.count <= 8, f"count must be 1..8, got {self.count}")
        _check(all(0 <= value <= 1 for value in self.mean), f"mean must be 0..1, got {self.mean}")
        _check(all(0 <= value <= 1 for value in self.std), f"std must be 0..1, got {self.std}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Augment:
    """How a picture becomes a square; all parameters are functions of (seed, position, view)."""

    crop: Literal["random", "center", "pad", "squash", "scale_jitter"] = "random"
    """`random` is torchvision's RandomResizedCrop; `center` resizes the short side and cuts the middle; `pad` resizes
    the long side, keeps all of the picture, and fills what is left over; `squash` resizes both sides to a square,
    whatever their ratio, and cuts the middle; `scale_jitter` resizes the short side to `jitter` of the square, keeps
    the ratio, and cuts a square anywhere, filling up what is missing: as segmentation is trained."""
    center_fraction: float = 1.0
    """Side of a centre crop as a share of the short side; 0.875 is Resize(256) and CenterCrop(224). Of a squashed
    picture as a share of each side."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of a random crop's area, as a share of the picture's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of a random crop's width over height, drawn evenly in its logarithm."""
    jitter: tuple[float, float] = (0.5, 2.0)
    """Range of a scale jitter: the short side as a share of the square's, drawn evenly."""
    pad_value: int = 0
    """Level of red, green and blue that `pad` and `scale_jitter` fill with."""
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
    rand_augment: RandAugment | None = None
    """RandAugment, behind the flip and before the colours; null = none, {} = timm's `rand-m9-mstd0.5-inc1`."""
    random_erasing: RandomErasing | None = None
    """Random erasing, behind everything else; null = none, {} = a quarter of the pictures, `pixel`."""

    def __post_init__(self) -> None:
        low, high = self.scale
        _check(0 < low <= high <= 1, f"scale must be a range within 0..1, got {low} and {high}")
        low, high = self.ratio
        _check(0.01 <= low <= high <= 100, f"ratio must be a range within 0.01..100, got {low} and {high}")
        low, high = self.jitter
        _check(0.05 <= low <= high <= 20, f"jitter must be a range within 0.05..20, got {low} and {high}")
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
    def cuts_middle(self) -> bool:
        """Whether the same part of every picture is seen."""
        return self.crop in ("center", "squash")

    @property
    def fills(self) -> bool:
        """Whether a part of the square may lie beside the picture."""
        return self.crop in ("pad", "scale_jitter")

    @property
    def jitters(self) -> bool:
        """Whether any picture's colours are jittered."""
        return self.colour_jitter_probability > 0 and any(self.colour_jitter)

    @property
    def idle(self) -> tuple[str, ...]:
        """Fields that play no part in the pictures, of those that were added since states name the augmentation."""
        fields: tuple[str, ...] = () if self.cuts_middle and self.center_fraction != 1 else ("center_fraction",)
        if not self.fills:
            fields += ("pad_value",)
        if self.crop != "scale_jitter":
            fields += ("jitter",)
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
        return fields + tuple(name for name in ("rand_augment", "random_erasing") if getattr(self, name) is None)

    @property
    def recolours(self) -> bool:
        """Whether any picture's colours are changed."""
        return self.jitters or max(self.grayscale_probability, self.blur_probability, self.solarize_probability) > 0

    @property
    def changes(self) -> bool:
        """Whether any picture is changed behind its crop and flip."""
        return self.recolours or self.rand_augment is not None or self.random_erasing is not None


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
