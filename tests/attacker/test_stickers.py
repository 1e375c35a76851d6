"""The sticker on a sign: where it sits, what colour it has, and what it refuses."""

import pytest
import torch

from nbtools.attacker.stickers import YELLOW, YellowSquare


def test_the_square_is_yellow_and_the_rest_is_untouched() -> None:
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    marked = YellowSquare(4)(images)
    assert torch.equal(images, before), "the images are not changed in place"
    changed = (marked != before).any(1)
    assert torch.equal(changed.sum((1, 2)), torch.tensor([16] * 3))
    assert changed[:, 21:25, 14:18].all()
    assert torch.allclose(marked[:, :, 22, 15], torch.tensor(YELLOW).expand(3, 3))


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 3, 8, 8), torch.full((1, 3, 32, 32), 2.0), torch.zeros(1, 1, 32, 32)]
)
def test_what_is_no_batch_of_images_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="trigger"):
        YellowSquare()(images)


def test_a_square_has_a_size() -> None:
    with pytest.raises(ValueError, match="size must be at least 1"):
        YellowSquare(0)
