#!/usr/bin/env bash
# Expected: a grey image of 16 bits a pixel, as microscopes and medical devices write them, becomes RGB by scaling 0 to
#   65,535 down to 0 to 255.
# What happens: convert("RGB") cuts every value above 255 off, so all but the darkest 0.4 % of the range is white. It is
#   so for mode "I;16" and for mode "I", and nothing warns: a data set of white images is the result.
# Versions: Pillow 9.5.0, 10.2.0, 10.4.0, 11.3.0, 12.0.0, 12.3.0 and 13.0.0.
# Seen on 2026-11-27:
#   Pillow 13.0.0
#   a.png, mode I;16: [0, 200, 255, 256, 1000, 32768, 65535] become [0, 200, 255, 255, 255, 255, 255]; 99.6% white
#   a.tif, mode I;16: [0, 200, 255, 256, 1000, 32768, 65535] become [0, 200, 255, 255, 255, 255, 255]; 99.6% white
#   b.tif, mode I: [0, 200, 255, 256, 1000, 32768, 65535] become [0, 200, 255, 255, 255, 255, 255]; 99.6% white
set -euo pipefail
source "$(dirname "$0")/common.bash"
python_with pillow==13.0.0 numpy==2.4.6
"$python" - <<'PYTHON'
import warnings

import numpy as np
import PIL
from PIL import Image

warnings.simplefilter("error")
print("Pillow", PIL.__version__)
ramp, few = np.arange(65_536).reshape(256, 256), [0, 200, 255, 256, 1_000, 32_768, 65_535]
for name, kind in {"a.png": np.uint16, "a.tif": np.uint16, "b.tif": np.int32}.items():
    Image.fromarray(ramp.astype(kind)).save(name)
    with Image.open(name) as image:
        same, red = np.asarray(image), np.asarray(image.convert("RGB"))[..., 0]
        shown, white = red.reshape(-1)[few].tolist(), (red == 255).mean()
        print(f"{name}, mode {image.mode}: {few} become {shown}; {white:.1%} white")
        assert image.mode == ("I" if name == "b.tif" else "I;16") and (same == ramp).all()
        assert (red == ramp.clip(0, 255)).all() and white > 0.99
PYTHON
