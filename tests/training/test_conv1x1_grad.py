"""Compare the gradients of narrow 1x1 convolutions with those of torch in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cnnspec.training.loop.conv1x1_grad import NARROW, NarrowGradients


def gradients(branches: nn.ModuleList, images: Tensor, towards: Tensor) -> list[Tensor | None]:
    """Return the gradients of images, weights and biases of concatenated branches."""
    images = images.clone(memory_format=torch.preserve_format).requires_grad_()
    branches.zero_grad()
    torch.cat([branch(images) for branch in branches], 1).backward(towards)
    return [images.grad, *(weight.grad for weight in branches.parameters())]


@pytest.mark.parametrize("size", [(9, 7), (1, 1)])
@pytest.mark.parametrize("n", [1, 5])
def test_gradients_equal_those_of_torch(n: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    kinds = [(1, {}), (NARROW, {"bias": False}), (8, {}), (NARROW + 1, {}), (8, {"kernel_size": 3, "padding": 1})]
    branches = nn.ModuleList(nn.Conv2d(24, c, **{"kernel_size": 1, **args}) for c, args in kinds)
    branches[2].weight.requires_grad_(False)  # a frozen branch
    branches.to(memory_format=torch.channels_last)
    images = torch.randn(n, 24, *size).contiguous(memory_format=torch.channels_last)
    towards = torch.randn(n, sum(c for c, _ in kinds), *size)
    with NarrowGradients():
        found = gradients(branches, images, towards)
    expected = gradients(branches.double(), images.double(), towards.double())
    assert [x is None for x in found] == [x is None for x in expected]
    for mine, theirs in zip(found, expected, strict=True):
        if mine is not None:
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "narrow"),
    [
        ({}, True),
        ({"out_channels": NARROW + 1}, False),
        ({"kernel_size": 3}, False),
        ({"stride": 2}, False),
        ({"padding": 1}, False),
        ({"groups": 2}, False),
    ],
)
def test_has_narrow(kind: dict[str, int], narrow: bool) -> None:
    conv = nn.Conv2d(**{"in_channels": 8, "out_channels": 4, "kernel_size": 1, **kind})
    images = torch.randn(2, 8, 6, 6)
    last = images.contiguous(memory_format=torch.channels_last)

    def name(x: Tensor, module: nn.Module = conv) -> str:
        return type(module(x).grad_fn).__name__

    plain = name(last)
    with NarrowGradients():
        assert (name(last) != plain) == narrow
        assert name(images) == plain  # contiguous
        assert name(last.double(), nn.Conv2d(8, 4, 1).double()) == plain
        with torch.autocast("cpu", torch.bfloat16):
            assert name(last) == plain
    assert name(last) == plain


def test_second_derivatives_equal_those_of_torch() -> None:
    conv = nn.Conv2d(6, 4, 1).to(memory_format=torch.channels_last)
    images = torch.randn(2, 6, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()

    def second() -> Tensor:
        (first,) = torch.autograd.grad(conv(images).square().sum(), conv.weight, create_graph=True)
        return torch.autograd.grad(first.square().sum(), images)[0]

    with NarrowGradients():
        found = second()
    torch.testing.assert_close(found, second(), rtol=1e-4, atol=1e-4)
