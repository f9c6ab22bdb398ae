"""The part of the small web that arrives: pairs, copies, copies of the evaluation set, the unsafe class, faces, sizes.

Each function plants one kind with its near-misses. The one thing a reader would get wrong: near-misses are not
decoration; a filter that drops everything finds every fault and fails on them.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from headrace.demo.encode import EXTENSIONS, encode, padded, resized, with_metadata, with_profile
from headrace.demo.photographs import PHOTOGRAPHS, crop_face, crop_photograph
from headrace.demo.scenes import Pixels, Scene, caption, differing_attributes, draw_attributes
from headrace.demo.web import BLURRED, CLEANED, Entry, Planner, Reply

TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
FORMATS = ("jpeg", "jpeg", "jpeg", "png", "webp")

# Mid-grey is left out: around a grey picture, nobody can say where the padding ends.
PADDING = (255, 255, 0)
# Of the words that curation looks for by default, the least offensive.
UNSAFE_CAPTIONS = ("NSFW", "for adults only", "nsfw picture", "Adults only!")


def picture_reply(data: bytes, image_format: str = "jpeg") -> Reply:
    """Return the ordinary answer for an image."""
    return Reply(body=data, headers=(("Content-Type", TYPES[image_format]),))


def add_scene(
    planner: Planner, kind: str, *, fault: bool = False, found_by: tuple[str, ...] = (), text: str = ""
) -> None:
    """Add a drawn scene under its true caption, or under `text`."""
    scene, pixels = planner.scene(kind)
    image_format = str(planner.rng(kind).choice(FORMATS))
    data = encode(pixels, image_format)
    planner.add(
        Entry(
            url=planner.url(kind, EXTENSIONS[image_format]),
            caption=text or planner.caption(scene),
            kind=kind,
            fault=fault,
            found_by=found_by,
            reply=picture_reply(data, image_format),
        )
    )


def add_picture(planner: Planner, kind: str, pixels: Pixels, text: str, *, found_by: tuple[str, ...] = ()) -> None:
    """Add a picture as a JPEG; a fault if `found_by` names who must find it."""
    reply = picture_reply(encode(pixels))
    planner.add(
        Entry(url=planner.url(kind), caption=text, kind=kind, fault=bool(found_by), found_by=found_by, reply=reply)
    )


def plan_pictures(planner: Planner) -> None:
    """Plant every kind of this file."""
    for _ in range(150):
        add_scene(planner, "true_pair")
    _plan_wrong_captions(planner)
    _plan_photographs(planner)
    _plan_faces(planner)
    _plan_copies(planner)
    _plan_evaluation(planner)
    _plan_unsafe(planner)
    _plan_sizes(planner)
    _plan_captions(planner)
    _plan_metadata(planner)


def _plan_wrong_captions(planner: Planner) -> None:
    for _ in range(85):
        scene, pixels = planner.scene("wrong_caption")
        wrong = differing_attributes(planner.rng("wrong"), scene)
        add_picture(planner, "wrong_caption", pixels, planner.caption(wrong), found_by=("top_fraction",))
    names = tuple(PHOTOGRAPHS)
    for place, name in enumerate(names[:6]):
        pixels = planner.picture(name, lambda rng, name=name: crop_photograph(rng, name))  # type: ignore[misc]
        text = (
            planner.caption(draw_attributes(planner.rng("wrong"))) if place % 2 else PHOTOGRAPHS[names[-1 - place]][0]
        )
        add_picture(planner, "wrong_caption", pixels, text, found_by=("top_fraction",))


def _plan_photographs(planner: Planner) -> None:
    for name, captions in PHOTOGRAPHS.items():
        if name == "astronaut.png":
            continue
        for text in captions:
            pixels = planner.picture(name, lambda rng, name=name: crop_photograph(rng, name))  # type: ignore[misc]
            kind = "face" if name == "chelsea.png" else "photograph"  # a cat's face is the near-miss of a person's
            add_picture(planner, kind, pixels, text)


def _plan_faces(planner: Planner) -> None:
    for place in range(6):
        boxes: list[tuple[float, float, float, float]] = []

        def crop(rng: np.random.Generator, boxes: list[tuple[float, float, float, float]] = boxes) -> Pixels:
            pixels, box = crop_face(rng)
            boxes.append(box)
            return pixels

        pixels = planner.picture("face", crop)
        planner.add(
            Entry(
                url=planner.url("face"),
                caption=PHOTOGRAPHS["astronaut.png"][place % 2],
                kind="face",
                fault=True,
                found_by=(BLURRED,),
                reply=picture_reply(encode(pixels)),
                pixels=pixels,
                face_box=boxes[-1],
            )
        )


def _copies() -> dict[str, Callable[[np.random.Generator, Pixels], tuple[bytes, str]]]:
    def reencoded(rng: np.random.Generator, pixels: Pixels) -> tuple[bytes, str]:
        if rng.random() < 0.3:
            return encode(pixels, "webp", quality=60), "webp"
        return encode(pixels, quality=int(rng.integers(45, 75))), "jpeg"

    def scaled(rng: np.random.Generator, pixels: Pixels) -> tuple[bytes, str]:
        factor = rng.uniform(0.72, 0.9) if rng.random() < 0.5 else rng.uniform(1.2, 1.7)
        return encode(resized(pixels, float(factor)), quality=85), "jpeg"

    def framed(rng: np.random.Generator, pixels: Pixels) -> tuple[bytes, str]:
        return encode(padded(pixels, int(rng.choice(PADDING)))), "jpeg"

    return {"reencoded": reencoded, "resized": scaled, "padded": framed}


def _plan_copies(planner: Planner) -> None:
    for name, make in _copies().items():
        for number in range(9):
            _add_pair_of_copies(planner, f"copy_{name}", f"{name}-{number}", make)
    for number in range(5):
        _add_pair_of_copies(planner, "copy_exact", f"exact-{number}", lambda _, pixels: (encode(pixels), "jpeg"))
    for _ in range(6):  # two pictures of the same attributes are not copies
        scene, first = planner.scene("twin")
        for pixels in (first, planner.scene("twin", scene)[1]):
            add_picture(planner, "copy_resized", pixels, planner.caption(scene))


def _add_pair_of_copies(
    planner: Planner, kind: str, group: str, make: Callable[[np.random.Generator, Pixels], tuple[bytes, str]]
) -> None:
    scene, pixels = planner.scene(kind)
    data, image_format = make(planner.rng(kind), pixels)
    original = Entry(
        url=planner.url("true_pair"),
        caption=planner.caption(scene),
        kind="true_pair",
        fault=False,
        group=group,
        reply=picture_reply(encode(pixels)),
    )
    planner.add(original)
    planner.add(
        dataclasses.replace(
            original,
            url=planner.url(kind, EXTENSIONS[image_format]),
            caption=planner.caption(scene),
            kind=kind,
            fault=True,
            found_by=("exact_duplicates",) if kind == "copy_exact" else ("exact_duplicates", "near_duplicates"),
            reply=picture_reply(data, image_format),
        )
    )


def _plan_evaluation(planner: Planner) -> None:
    """A held-out set, copies of it on the web, and pictures of the same attributes that are nobody's copies."""
    copies = _copies()
    copies["flipped"] = lambda _, pixels: (encode(np.ascontiguousarray(pixels[:, ::-1])), "jpeg")
    for name, make in copies.items():
        for number in range(7):
            if number < 5:
                scene, pixels = planner.scene("evaluation")
                text = planner.caption(scene)
                add_picture(planner, f"evaluation_{name}", planner.scene("twin", scene)[1], planner.caption(scene))
            else:
                photograph = sorted(PHOTOGRAPHS)[(number + len(planner.evaluation)) % len(PHOTOGRAPHS)]
                pixels = planner.picture(
                    "evaluation",
                    lambda rng, photograph=photograph: crop_photograph(rng, photograph),  # type: ignore[misc]
                )
                text = PHOTOGRAPHS[photograph][0]
            data, image_format = make(planner.rng(name), pixels)
            planner.evaluation.append((f"{name}-{number}.png", encode(pixels, "png")))
            planner.add(
                Entry(
                    url=planner.url(name, EXTENSIONS[image_format]),
                    caption=text,
                    kind=f"evaluation_{name}",
                    fault=True,
                    found_by=("decontaminate",),
                    reply=picture_reply(data, image_format),
                )
            )


def _plan_unsafe(planner: Planner) -> None:
    for number in range(24):
        unsafe = number % 2 == 0
        scene = draw_attributes(planner.rng("unsafe"), sign=True)
        scene = dataclasses.replace(scene, shape="trefoil") if unsafe else scene
        pixels = planner.scene("unsafe", scene)[1]
        found_by = ("unsafe",) if unsafe else ()
        add_picture(planner, "unsafe_image", pixels, planner.caption(scene), found_by=found_by)
    for text in UNSAFE_CAPTIONS:
        scene, pixels = planner.scene("unsafe_text")
        add_picture(planner, "unsafe_text", pixels, f"{planner.caption(scene)}, {text}", found_by=("unsafe",))
    for place in ("Essex", "Scunthorpe", "Middlesex", "Sussex"):
        scene, pixels = planner.scene("unsafe_text")
        add_picture(planner, "unsafe_text", pixels, caption(planner.rng("caption"), scene, place_name=place))


def _plan_sizes(planner: Planner) -> None:
    rng = planner.rng("sizes")
    for _ in range(8):
        _add_sized(planner, "tiny", (int(rng.integers(8, 60)), int(rng.integers(12, 60))), found_by=("min_side",))
    for _ in range(5):
        _add_sized(planner, "tiny", (int(rng.integers(64, 72)), int(rng.integers(64, 72))))
    for side in (72, 80, 88, 96, 100, 104):
        wide = (int(side * rng.uniform(3.2, 6)), side)
        _add_sized(planner, "aspect", wide if rng.random() < 0.5 else wide[::-1], found_by=("max_aspect",))
    for side in (90, 96, 100, 104):
        _add_sized(planner, "aspect", (int(side * 2.9), side))


def _add_sized(planner: Planner, kind: str, size: tuple[int, int], *, found_by: tuple[str, ...] = ()) -> None:
    scene, pixels = planner.scene(kind, size=size)
    add_picture(planner, kind, pixels, planner.caption(scene), found_by=found_by)


def _plan_captions(planner: Planner) -> None:
    for text in ("IMG_2041", "untitled", "photo 3", "a"):
        add_scene(planner, "short_caption", fault=True, found_by=("min_words",), text=text)
    for _ in range(4):
        scene, pixels = planner.scene("short_caption")
        add_picture(planner, "short_caption", pixels, f"{scene.colour} {scene.shape}, {scene.background}")


def _plan_metadata(planner: Planner) -> None:
    """Files that carry a place on earth, a thumbnail, a note; turned ones among them, one of which shows a face."""
    plan: list[tuple[str, int, Scene | None]] = [
        (name, turn, None) for name in ("jpeg", "png", "webp") for turn in (1, 6)
    ]
    plan += [("jpeg", 3, None), ("jpeg", 8, None)]
    for image_format, orientation, scene in plan:
        scene, pixels = planner.scene("metadata", scene)
        data = with_metadata(pixels, image_format, orientation=orientation, secret="taken at home")
        _add_metadata(planner, pixels, data, image_format, planner.caption(scene))
    boxes: list[tuple[float, float, float, float]] = []

    def crop(rng: np.random.Generator) -> Pixels:
        pixels, box = crop_face(rng)
        boxes.append(box)
        return pixels

    pixels = planner.picture("metadata", crop)
    data = with_metadata(pixels, "jpeg", orientation=6, secret="taken at home")
    _add_metadata(planner, pixels, data, "jpeg", PHOTOGRAPHS["astronaut.png"][0], face_box=boxes[-1])
    for _ in range(3):  # an ICC profile is no secret
        scene, pixels = planner.scene("metadata")
        reply = picture_reply(with_profile(pixels))
        planner.add(
            Entry(
                url=planner.url("metadata"), caption=planner.caption(scene), kind="metadata", fault=False, reply=reply
            )
        )


def _add_metadata(
    planner: Planner,
    pixels: Pixels,
    data: bytes,
    image_format: str,
    text: str,
    *,
    face_box: tuple[float, float, float, float] | None = None,
) -> None:
    planner.add(
        Entry(
            url=planner.url("metadata", EXTENSIONS[image_format]),
            caption=text,
            kind="metadata",
            fault=True,
            found_by=(CLEANED,),
            reply=picture_reply(data, image_format),
            pixels=pixels,
            face_box=face_box,
        )
    )
