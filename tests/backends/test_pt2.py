"""Test the backend of `torch.export`: programs with a variable batch take any number of images."""

from __future__ import annotations

import pytest
import torch
from test_torch_module import CASES, single

from cnnspec import loads
from cnnspec.backends import pt2
from cnnspec.backends.torch.module import Network, to_module
from cnnspec.shapes import Shape

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_any_batch(network: Network) -> None:
    """Trace a network for two images, in both memory formats, and run it for other numbers."""
    network.eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, *network.graph.input_shape, generator=generator)
    for given in (images[:2], images[:2].to(memory_format=torch.channels_last)):
        found = pt2.trace(network, given, dynamic={0: pt2.dimension("batch", 1)}).module()
        with torch.no_grad():
            for batch in (1, 3):
                torch.testing.assert_close(found(images[:batch]), network(images[:batch]))


@pytest.mark.parametrize(
    "text",
    [
        "input 1x8x8\nconv 3x3 4 stride=2 | avgpool 2 | flatten | linear 3",
        "input 3x8x8\nconv 3x3 1 | ln | conv 3x3 4",
        "input 1x8x1\nlinear 1 pointwise | conv 3x3 4",
        "input 3x1x8\nln | linear 1 pointwise | conv 3x3 4",
        "input 3x1x1\nln | conv 3x3 4 | ln | conv 1x1 4",
        "input 4x6x6\nadd { slice 0..1 | ln; slice 1..2 | linear 1 pointwise } | conv 1x1 2",
        "input 4x6x6\nmul { slice 0..2; slice 2..4; add { slice 0..2; slice 1..3 } } | conv 1x1 2",
        "input 4x6x6\nln\nconcat { slice 0..1; in; slice 1..2 | scale bare; slice 3..4 | shift bare }",
    ],
)
def test_maps_whose_strides_are_ambiguous(text: str) -> None:
    """A map with one channel, row or column is contiguous with the strides of either memory format."""
    assert_any_batch(to_module(loads(text)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "settings"), CASES)
def test_an_operator(name: str, shape: Shape, settings: dict) -> None:
    if len(shape) == 3:
        assert_any_batch(to_module(single(name, shape, settings)))
