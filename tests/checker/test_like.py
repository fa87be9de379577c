"""Sizes of other maps: `upsample like=@label`."""

from __future__ import annotations

import pytest

from cnnspec import check, loads
from cnnspec.analysis.receptive_field import fields, masks
from cnnspec.api import format

UNET = """
input 3x33x46
{label}: conv 3x3 8 | relu
d2: maxpool 2 | conv 3x3 8 | relu
d3: maxpool 2 | conv 3x3 8 | relu
maxpool 2 | conv 3x3 8
add {{ upsample like=@d3 mode={mode}; @d3 }}
add {{ upsample like=@d2 mode={mode}; @d2 }}
add {{ upsample like=@{label} mode={mode}; @{label} }}
"""


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_a_network_that_downsamples_accepts_every_size(mode: str) -> None:
    graph = loads(UNET.format(label="d1", mode=mode))
    assert graph.sizes.words() == "any HxW of at least 8x8"
    assert graph.at(101, 57).output_shape == (8, 101, 57)
    assert graph.symbolic_shape("d2") == "[N, 8, H//2, W//2]"
    assert not graph.accepts(7, 57)


def test_the_size_counts_and_the_values_do_not() -> None:
    graph = loads(
        "input 3x32x32\nx: in\nd: conv 9x9 8 stride=2 | relu\nadd { in; @x | conv 1x1 8 | upsample like=@d }\n"
    )
    up, joined = graph.nodes[-2], graph.nodes[-1]
    assert (up.inputs, up.sources) == ((2, 1), (2,))
    assert graph.depths[-2:] == [1, 1]
    assert [fields(graph)[i] for i in (-2, -1)] == [(1, 1), (9, 9)]
    assert masks(graph) is not None
    assert [float(part) for part in graph.reductions[-2]] == [2, 2]
    assert joined.shape == (8, 16, 16)


def test_the_input_of_the_statement() -> None:
    block = "block attend() { mul { in; maxpool 4 | conv 3x3 in.c | upsample like=in | sigmoid } }\n"
    graph = loads(f"input 4x19x22\n{block}attend x2\nconv 3x3 4 stride=2 | conv 3x3 2 | upsample like=in\n")
    assert graph.sizes.words() == "any HxW of at least 4x4"
    assert graph.output_shape == (2, 19, 22)


def test_repeats_and_blocks_find_their_own_labels() -> None:
    block = "block down_up() { x: relu; maxpool 2 | conv 3x3 in.c; upsample like=@x }\n"
    graph = loads(f"input 4x19x22\n{block}down_up x2\nmaxpool 2\nrepeat 2 {{ down_up }}\n")
    sized = [graph.nodes[node.inputs[1]] for node in graph if len(node.inputs) > 1]
    assert [node.shape[1:] for node in sized] == [(19, 22), (19, 22), (9, 11), (9, 11)]


def test_a_map_without_weights_may_give_its_size_alone() -> None:
    text = "input 3x9x9\nx: in\nsmall: maxpool 2\n@x | conv 3x3 4 | upsample like=@small\n"
    assert [diagnostic.message for diagnostic in check(text)] == []


def test_it_is_formatted() -> None:
    text = "a: relu\nupsample like = @a   mode=bilinear\nup: upsample like=in\n"
    assert format(text) == "a: relu\nupsample like=@a mode=bilinear\nup: upsample like=in\n"


@pytest.mark.parametrize("size", [(33, 46), (8, 8), (40, 9)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_the_module_interpolates_as_torch(size: tuple[int, int], mode: str) -> None:
    torch = pytest.importorskip("torch")
    from cnnspec.api import build

    module = build(loads(f"input 3x16x16\nx: in\ndown: conv 3x3 4 stride=2\nupsample like=@x mode={mode}\n"))
    images = torch.randn(2, 3, *size)
    corners = None if mode == "nearest" else False
    expected = torch.nn.functional.interpolate(module.down(images), size, mode=mode, align_corners=corners)
    assert torch.equal(module(images), expected)
