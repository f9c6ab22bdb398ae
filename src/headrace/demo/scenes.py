"""Procedurally drawn scenes with known attributes: a coloured shape, somewhere, over a textured background.

Invariant: a scene is a pure function of its attributes and its seed. The one thing a reader would get wrong: the
strong, seeded variation of brightness is not decoration. Perceptual hashes see brightness only, and flat drawings of
one shape collide; with it, two scenes of the same attributes are as far apart as two photographs.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from headrace.shards.permutation import make_key

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent")
COLOURS = {
    "red": (225, 35, 35),
    "green": (40, 175, 60),
    "blue": (45, 80, 230),
    "yellow": (250, 220, 40),
    "purple": (140, 40, 170),
    "orange": (250, 135, 20),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
BACKGROUNDS = {
    "grey": (140, 140, 140),
    "brown": (140, 90, 50),
    "pink": (245, 165, 190),
    "teal": (30, 140, 140),
    "navy": (35, 45, 110),
    "olive": (130, 135, 45),
}
TEXTURES = ("striped", "dotted", "checkered", "cloudy", "wavy")
# Where the shape's centre stands, in fractions of the central square: a centre crop of any aspect still shows it.
POSITIONS = {
    "left": (-0.24, 0.0),
    "right": (0.24, 0.0),
    "top": (0.0, -0.24),
    "bottom": (0.0, 0.24),
    "middle": (0.0, 0.0),
}
# Innocent place names, among them the ones that careless word lists trip over.
PLACES = ("Paris", "Essex", "Sussex", "Lima", "Scunthorpe", "Oslo", "Middlesex", "Kyoto", "Accra", "Quito")

SUPERSAMPLING = 3

Pixels = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Thing:
    """One of several shapes in a picture, and where it is seen."""

    shape: str
    colour: str
    mask: NDArray[np.bool_]
    """[height, width], True where it is seen: what lies over it is not."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of what is seen, in whole pixels."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What is drawn, and therefore what a true caption says."""

    shape: str
    colour: str
    position: str
    texture: str
    background: str
    sign: bool = False
    """The shape is drawn small and black on a yellow disc; `shape` may then also be `trefoil`, the unsafe class."""


def generator(*parts: int | str) -> np.random.Generator:
    """Return a generator that depends on `parts` only, on any machine and in any order of calls."""
    return np.random.Generator(np.random.Philox(key=make_key("demo", *parts)))


def draw_attributes(rng: np.random.Generator, *, sign: bool = False) -> Scene:
    """Return a scene with every attribute chosen at random."""
    return Scene(
        shape=str(rng.choice(SHAPES)),
        colour="black" if sign else str(rng.choice(list(COLOURS))),
        position=str(rng.choice(list(POSITIONS))),
        texture=str(rng.choice(TEXTURES)),
        background=str(rng.choice(list(BACKGROUNDS))),
        sign=sign,
    )


def differing_attributes(rng: np.random.Generator, scene: Scene) -> Scene:
    """Return a scene that shares no attribute with `scene`: its caption is wrong in every word that counts."""

    def other(names: tuple[str, ...], taken: str) -> str:
        return str(rng.choice([name for name in names if name != taken]))

    return Scene(
        shape=other(SHAPES, scene.shape),
        colour=other(tuple(COLOURS), scene.colour),
        position=other(tuple(POSITIONS), scene.position),
        texture=other(TEXTURES, scene.texture),
        background=other(tuple(BACKGROUNDS), scene.background),
    )


def caption(rng: np.random.Generator, scene: Scene, *, place_name: str = "") -> str:
    """Return one of several true captions of `scene`; one in five ends with a place name, all if one is given."""
    thing = f"{scene.colour} {scene.shape}"
    if scene.sign:
        thing = str(rng.choice([f"yellow sign with a {thing}", f"yellow disc that shows a {thing}"]))
    where = {
        "left": ("on the left", "at the left side"),
        "right": ("on the right", "at the right side"),
        "top": ("at the top", "near the upper edge"),
        "bottom": ("at the bottom", "near the lower edge"),
        "middle": ("in the middle", "at the centre"),
    }[scene.position]
    place = str(rng.choice(where))
    behind = f"{scene.texture} {scene.background}"
    text = str(
        rng.choice(
            [
                f"a {thing} {place} of a {behind} background",
                f"a {thing} over {behind}, {place}",
                f"{thing} drawn {place}, the background is {behind}",
                f"a drawing of a {thing}, {place}, on a {behind} ground",
                f"on a {behind} background a {thing} {place}",
                f"{thing}, {scene.background}",
            ]
        )
    )
    text = text.replace("a orange", "an orange")
    place_name = place_name or (str(rng.choice(PLACES)) if rng.random() < 0.2 else "")
    return f"{text}, {place_name}" if place_name else text


def draw(scene: Scene, rng: np.random.Generator, *, width: int, height: int) -> Pixels:
    """Draw `scene` as RGB [height, width, 3]; all that the attributes leave open comes from `rng`."""
    side = min(width, height)
    canvas = _background(scene, rng, width, height)
    offset_x, offset_y = POSITIONS[scene.position]
    jitter = rng.uniform(-0.04, 0.04, 2)
    centre = (width / 2 + side * (offset_x + jitter[0]), height / 2 + side * (offset_y + jitter[1]))
    radius = side * rng.uniform(0.17, 0.23)
    angle = rng.uniform(-0.2, 0.2)
    if scene.sign:
        radius *= 1.15
        canvas = _paint(canvas, _mask("circle", (width, height), centre, radius, 0.0), COLOURS["yellow"], rng)
        radius *= 0.72
    canvas = _paint(canvas, _mask(scene.shape, (width, height), centre, radius, angle), COLOURS[scene.colour], rng)
    canvas = canvas * _brightness(rng, width, height) + rng.normal(0.0, 5.0, canvas.shape)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def draw_things(
    rng: np.random.Generator, *, width: int, height: int, colours: Sequence[str], least: int = 1, most: int = 3
) -> tuple[Pixels, list[Thing]]:
    """Draw `least` to `most` shapes of some colours, later ones over earlier ones, as RGB [height, width, 3].

    One that would hide half of another is not drawn.
    """
    scene, side = draw_attributes(rng), min(width, height)
    canvas = _background(scene, rng, width, height)
    drawn: list[tuple[str, str, NDArray[np.bool_]]] = []
    for _ in range(int(rng.integers(least, most + 1))):
        shape, colour = str(rng.choice(("circle", "square", "triangle"))), str(rng.choice(list(colours)))
        centre = (float(rng.uniform(0.2, 0.8)) * width, float(rng.uniform(0.2, 0.8)) * height)
        cover = _mask(shape, (width, height), centre, side * float(rng.uniform(0.16, 0.26)), float(rng.uniform(0, 6)))
        inside = cover[..., 0] >= 0.5
        # What would be left of another must be seen as a thing still, or this one is not drawn.
        if all((mask & ~inside).sum() > mask.sum() / 2 for _, _, mask in drawn):
            canvas = _paint(canvas, cover, COLOURS[colour], rng)
            drawn = [(shape, colour, mask & ~inside) for shape, colour, mask in drawn] + [(shape, colour, inside)]
    canvas = canvas * _brightness(rng, width, height) + rng.normal(0.0, 5.0, canvas.shape)
    things = [Thing(shape=shape, colour=colour, mask=mask) for shape, colour, mask in drawn]
    return np.clip(canvas, 0, 255).astype(np.uint8), things


def _background(scene: Scene, rng: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    ys, xs = np.mgrid[0:height, 0:width] / float(min(width, height))
    turn = rng.uniform(0, math.pi)
    u = xs * math.cos(turn) + ys * math.sin(turn) + rng.uniform()
    v = ys * math.cos(turn) - xs * math.sin(turn) + rng.uniform()
    period = rng.uniform(0.09, 0.17)
    wave_u, wave_v = np.sin(2 * math.pi * u / period), np.sin(2 * math.pi * v / period)
    if scene.texture == "striped":
        pattern = np.clip(wave_u * 3, -1, 1)
    elif scene.texture == "dotted":
        pattern = np.clip((wave_u * wave_v - 0.35) * 4, -1, 1)
    elif scene.texture == "checkered":
        pattern = np.clip(wave_u * wave_v * 6, -1, 1)
    elif scene.texture == "wavy":
        pattern = np.clip(np.sin(2 * math.pi * (u + 0.06 * np.sin(2 * math.pi * v / 0.3)) / period) * 3, -1, 1)
    else:
        pattern = np.clip(_noise(rng, width, height, (5, 9)) * 1.5, -1, 1)
    base = np.asarray(BACKGROUNDS[scene.background], np.float64)
    return np.asarray(base * (1.0 + 0.28 * pattern[..., None]))


def _brightness(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    field = _noise(rng, width, height, (3, 5, 8, 12))
    return np.asarray(np.clip(0.88 + 0.34 * field, 0.3, 1.35)[..., None])


def _noise(rng: np.random.Generator, width: int, height: int, cells: tuple[int, ...]) -> NDArray[np.float64]:
    total = np.zeros((height, width))
    for count in cells:
        grid = Image.fromarray(rng.normal(size=(count, count)).astype(np.float32))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return np.asarray(total / (total.std() + 1e-9))


def _paint(
    canvas: NDArray[np.float64], mask: NDArray[np.float64], colour: tuple[int, int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    tint = np.asarray(colour, np.float64) * rng.uniform(0.92, 1.08, 3)
    return np.asarray(canvas * (1 - mask) + tint * mask)


def _mask(
    shape: str, size: tuple[int, int], centre: tuple[float, float], radius: float, angle: float
) -> NDArray[np.float64]:
    """Return how much of each pixel the shape covers, 0..1, as [height, width, 1]."""
    scale = SUPERSAMPLING
    image = Image.new("L", (size[0] * scale, size[1] * scale), 0)
    pen = ImageDraw.Draw(image)
    x, y, r = centre[0] * scale, centre[1] * scale, radius * scale

    def disc(dx: float, dy: float, share: float, fill: int) -> None:
        pen.ellipse((x + dx - r * share, y + dy - r * share, x + dx + r * share, y + dy + r * share), fill=fill)

    if shape in ("circle", "ring", "crescent"):
        disc(0, 0, 1.0, 255)
        if shape == "ring":
            disc(0, 0, 0.55, 0)
        elif shape == "crescent":
            disc(r * 0.45 * math.cos(angle), r * 0.45 * math.sin(angle), 0.8, 0)
    elif shape == "trefoil":
        for blade in range(3):
            start = math.degrees(angle) + 120 * blade + 60
            pen.pieslice((x - r, y - r, x + r, y + r), start, start + 60, fill=255)
        disc(0, 0, 0.32, 0)
        disc(0, 0, 0.2, 255)
    else:
        pen.polygon([(x + r * px, y + r * py) for px, py in _outline(shape, angle)], fill=255)
    small = image.resize(size, Image.Resampling.BOX)
    return np.asarray(small, np.float64)[..., None] / 255.0


def _outline(shape: str, angle: float) -> list[tuple[float, float]]:
    """Return the corners of a polygon of about unit radius, turned by `angle`."""
    polar: list[tuple[float, float]]
    if shape == "square":
        polar = [(1.1, 45 + 90 * k) for k in range(4)]
    elif shape == "triangle":
        polar = [(1.15, -90 + 120 * k) for k in range(3)]
    elif shape == "star":
        polar = [(1.15 if k % 2 == 0 else 0.46, -90 + 36 * k) for k in range(10)]
    elif shape == "cross":
        wide, thin = 1.05, 0.3
        corner = math.hypot(wide, thin), math.degrees(math.atan2(thin, wide))
        polar = []
        for k in range(4):
            inner = (thin * math.sqrt(2), 90 * k + 45)
            polar += [(corner[0], 90 * k - corner[1]), (corner[0], 90 * k + corner[1]), inner]
    else:
        raise ValueError(f"unknown shape {shape!r}; known shapes: {', '.join((*SHAPES, 'trefoil'))}")
    return [
        (radius * math.cos(math.radians(degrees) + angle), radius * math.sin(math.radians(degrees) + angle))
        for radius, degrees in polar
    ]
