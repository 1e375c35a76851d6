"""The saliency's loss and its gradient norms against one backward pass an image, in float64."""

import pytest
import torch
from tiny import plain_loss
from torch import Tensor, nn

from nbtools.defender import saliency
from nbtools.defender.saliency import SALIENCY_LOSSES, gradient_norms, gradient_sum, saliency_loss


@pytest.mark.parametrize("kind", SALIENCY_LOSSES)
def test_saliency_loss_adds_up_the_images(kind: str) -> None:
    logits = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(9) % 5
    expected = sum(float(plain_loss(row, label, kind)) for row, label in zip(logits, labels.tolist(), strict=True))
    assert float(saliency_loss(logits, labels, kind)) == pytest.approx(expected, rel=1e-12)


CONVOLUTIONS = {
    "3x3": lambda: nn.Conv2d(6, 8, 3, padding=1),
    "stride that leaves a row over": lambda: nn.Conv2d(6, 8, 3, stride=2),
    "1x1 with stride": lambda: nn.Conv2d(6, 8, 1, stride=2),
    "odd kernel, other strides and paddings": lambda: nn.Conv2d(6, 8, (1, 5), stride=(2, 1), padding=(1, 3)),
    "dilated": lambda: nn.Conv2d(6, 8, 3, padding=2, dilation=(2, 3)),
    "grouped": lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3),
    "depthwise": lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6),
    "padded to the same size": lambda: nn.Conv2d(6, 8, (5, 3), padding="same"),
    "padded by reflection": lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "few positions": lambda: nn.Conv2d(6, 128, 5, stride=2),
    "few positions, grouped": lambda: nn.Conv2d(6, 256, 5, stride=2, groups=2),
}


@pytest.mark.parametrize("chunk", [1, 10_000, saliency.CHUNK["cpu"]])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_equal_one_backward_pass_an_image(name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saliency, "CHUNK", {"cpu": chunk})
    torch.manual_seed(0)
    conv = CONVOLUTIONS[name]().double()
    inputs = torch.randn(5, 6, 9, 10, dtype=torch.float64).to(memory_format=torch.channels_last)
    outputs = conv(inputs)
    gradient = torch.randn_like(outputs)
    gradient[:, 2], gradient[3] = 0, 0  # a filter, and an image, that nothing depends on
    one_by_one: list[Tensor] = []
    for image, answer in zip(inputs, gradient, strict=True):
        one_by_one += torch.autograd.grad((conv(image[None]) * answer).sum(), conv.weight)
    expected = torch.stack(one_by_one).flatten(2).norm(dim=2).sum(0)
    torch.testing.assert_close(gradient_norms(conv, inputs, gradient), expected, rtol=1e-10, atol=0)
    assert expected[2] == 0
    in_order = torch.stack(one_by_one).sum(0).permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(gradient_sum(conv, inputs, gradient), in_order, rtol=1e-10, atol=1e-12)


def test_few_positions_lose_no_digits_where_terms_cancel() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 64, 3)
    inputs = 100 + torch.rand(3, 16, 6, 6)
    gradient = torch.randn(3, 64, 4, 4)
    gradient -= gradient.mean((2, 3), keepdim=True)  # sums to nothing over the positions, as the inputs hardly differ
    exact = nn.functional.unfold(inputs.double(), 3)
    expected = (gradient.double().flatten(2) @ exact.transpose(1, 2)).norm(dim=2).sum(0)
    torch.testing.assert_close(gradient_norms(conv, inputs, gradient), expected, rtol=1e-5, atol=0)
