"""RandAugment on one picture: Pillow's answer to the bit, as timm asks for it."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from headrace.pipeline import RandAugment
from headrace.pipeline.augment.config import INTERPOLATIONS, Interpolation
from headrace.pipeline.augment.rand_augment import NAMES, Operation, argument
from headrace.pipeline.augment.rand_picture import RESAMPLING, rand_picture

FILL = (124, 116, 104)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_each_operation_is_timms_to_the_bit(pictures: Any, name: str, interpolation: Interpolation) -> None:
    from timm.data.auto_augment import NAME_TO_OP

    images = [*pictures(6, 37).numpy(), np.full((5, 5, 3), 9, np.uint8), pictures(1, 2).numpy()[0]]
    for image in images:
        for increasing in (True, False):
            for magnitude in (0.0, 3.3, 9.0, 10.0):
                for sign in (-1, 1):
                    value = argument(RandAugment(increasing=increasing), name, magnitude, sign)
                    if (name, value) == ("Posterize", 0):
                        continue  # Pillow refuses it
                    # The rest of timm's arguments are those of its AugmentOp.
                    theirs = NAME_TO_OP[name](
                        Image.fromarray(image),
                        *([] if name in ("AutoContrast", "Equalize", "Invert") else [value]),
                        fillcolor=FILL,
                        resample=RESAMPLING[interpolation],
                    )
                    ours = image.copy()
                    rand_picture(ours, [Operation(name, value)], interpolation=interpolation, fill=FILL)
                    assert np.array_equal(ours, np.asarray(theirs)), (value, image.shape)


def test_operations_follow_one_another_and_no_bits_are_black(pictures: Any) -> None:
    image = pictures(1).numpy()[0]
    both, one_by_one, black = image.copy(), image.copy(), image.copy()
    steps = [Operation("Rotate", 20.0), Operation("Solarize", 100.0)]
    rand_picture(both, steps, interpolation="bicubic", fill=FILL)
    for step in steps:
        rand_picture(one_by_one, [step], interpolation="bicubic", fill=FILL)
    assert np.array_equal(both, one_by_one)
    rand_picture(black, [Operation("Posterize", 0.0)], interpolation="bicubic", fill=FILL)
    assert not black.any()
