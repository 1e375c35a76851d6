"""The stamp on a page, and its figures."""

import base64
import io
import json
import os
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from nbtools.series import stamp
from nbtools.settings import package_version

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def test_stamp_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stamp.make_stamp("quick", {"counts": (1, 2)}, "00", 1.234)
    assert json.loads(json.dumps(made))["seconds"] == 1.2
    assert package_version("no-such-package") == "missing"
    assert os.path.sep not in made["hardware"]


def drawing() -> Image.Image:
    image = Image.new("RGB", (300, 200), (1, 115, 178))
    image.paste(Image.effect_noise((15, 200), 40).convert("RGB"), (0, 0))
    return image


def photograph() -> Image.Image:
    bands = [Image.radial_gradient("L").resize((300, 200)), Image.linear_gradient("L").resize((300, 200))]
    image = Image.merge(
        "RGB", [*bands, bands[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(90).resize((300, 200))]
    )
    image.paste((1, 115, 178), (160, 0, 200, 40))
    return image


@pytest.mark.parametrize(("made", "colors", "off"), [(drawing, 96, 0.6), (photograph, 256, 6)])
def test_figures_are_made_smaller_and_look_the_same(made: Callable[[], Image.Image], colors: int, off: float) -> None:
    image, buffer = made(), io.BytesIO()
    image.save(buffer, "png")
    small = base64.b64decode(stamp.smaller(base64.b64encode(buffer.getvalue()).decode()))
    with Image.open(io.BytesIO(small)) as seen:
        again = seen.convert("RGB")
    palette = len(np.unique(np.asarray(again).reshape(-1, 3), axis=0))
    assert palette <= colors and (colors == 96 or palette > 96)
    assert len(small) < 0.8 * buffer.tell() and again.size == image.size
    assert np.abs(np.asarray(again, int) - np.asarray(image, int)).mean() <= off


def test_what_would_grow_stays_as_it_is() -> None:
    assert stamp.smaller(PIXEL) == PIXEL
