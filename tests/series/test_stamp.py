"""The stamp on a page, and its figures."""

import base64
import io
import json
import os

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


def test_figures_are_made_smaller_and_look_the_same() -> None:
    bands = Image.radial_gradient("L"), Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90)
    image = Image.merge("RGB", [band.resize((300, 200)) for band in bands])  # a picture of many colours
    image.paste((255, 255, 255), (0, 0, 150, 200))
    marks = {(213, 94, 0): 20, (222, 143, 5): 40, (1, 115, 178): 60, (204, 120, 188): 80}  # a legend: few pixels each
    for color, row in marks.items():
        image.paste(color, (20, row, 25, row + 5))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    made = base64.b64decode(stamp.smaller(base64.b64encode(buffer.getvalue()).decode()))
    assert len(made) < 0.7 * buffer.tell()
    with Image.open(io.BytesIO(made)) as small:
        off = np.abs(np.asarray(small.convert("RGB"), int) - np.asarray(image, int))
    assert off.max() <= 24 and max(off[row, 20].max() for row in marks.values()) <= 8


def test_up_to_256_colours_are_kept_exactly() -> None:
    image = Image.effect_noise((300, 200), 40).convert("RGB")
    image.paste((1, 115, 178), (0, 0, 150, 200))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    made = base64.b64decode(stamp.smaller(base64.b64encode(buffer.getvalue()).decode()))
    assert len(made) < 0.7 * buffer.tell()
    with Image.open(io.BytesIO(made)) as small:
        assert small.size == image.size
        assert np.abs(np.asarray(small.convert("RGB"), int) - np.asarray(image, int)).max() <= 8


def test_what_would_grow_stays_as_it_is() -> None:
    assert stamp.smaller(PIXEL) == PIXEL
