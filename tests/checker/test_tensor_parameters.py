"""Blocks with several inputs: section "Tensor parameters" of the reference."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from cnnspec import check, loads
from cnnspec.analysis.diff import compare
from cnnspec.api import format
from cnnspec.ir import Graph
from cnnspec.ir.model import Model

if TYPE_CHECKING:
    import torch

UNET = """
input 3x32x40

block double(c) {
    conv1: conv 3x3 c bias
    relu
    conv2: conv 3x3 c bias
    relu
}
block up(c, skip: tensor) {
    concat { { upsample like=@skip mode=bilinear; up: conv 3x3 c bias }; @skip }
    body: double c
}
enc1: double 4
down: maxpool 2
enc2: double 8
maxpool 2
mid: double 16
dec2: up 8 @enc2
dec1: up skip=@enc1 c=4
head conv 1x1 2 bias
"""
GATE = """
block gate(c, signal: tensor, skip: tensor) {
    x: in
    weights: {
        add { @skip | conv 1x1 c; @signal | conv 1x1 c | upsample like=@skip }
        relu
        psi: conv 1x1 1 | sigmoid
    }
    concat { @x | upsample like=@skip; mul { @skip; @weights } }
}
"""


def inlined(text: str) -> str:
    """Return a spec in which the calls of `up` are replaced by the body of the block."""
    body = re.search(r"block up\(.*?\) (\{.*?\n\})\n", text, re.DOTALL)
    assert body is not None
    text = text.replace(body.group(), "")
    for label, width, skip in (("dec2", 8, "enc2"), ("dec1", 4, "enc1")):
        code = body.group(1).replace("@skip", f"@{skip}").replace(" c bias", f" {width} bias")
        text = re.sub(rf"{label}: up [^\n]*", f"{label}: {code.replace('double c', f'double {width}')}", text)
    return text


def structure(graph: Graph) -> list[Any]:
    return [
        (
            node.path,
            node.op.name,
            {**node.op.settings(), "like": None},
            node.inputs,
            node.shape,
            node.weights,
            node.macs,
        )
        for node in graph.nodes
    ]


def test_a_call_is_the_body_with_the_tensors_of_the_caller() -> None:
    graph, plain = loads(UNET), loads(inlined(UNET))
    assert structure(graph) == structure(plain)
    assert (graph.sizes.words(), graph.depth, graph.macs) == (plain.sizes.words(), plain.depth, plain.macs)
    changes = compare(graph, loads(UNET.replace("up 8 @enc2", "up 8 @down"))).changes
    assert [change.path for change in changes][:1] == ["dec2.0"]


def test_every_size_is_accepted() -> None:
    graph = loads(UNET)
    assert graph.sizes.words() == "any HxW of at least 4x4"
    assert graph.at(33, 21).output_shape == (2, 33, 21)
    assert graph.symbolic_shape("dec2") == "[N, 8, H//2, W//2]"


@pytest.mark.parametrize("call", ["fuse 5 @a", "fuse c=5 side=@a", "fuse side=@a c=5", "each fuse(c side) { 5 @a }"])
@pytest.mark.parametrize("name", ["a", "path.0", "in"])
def test_every_way_to_pass_a_tensor(call: str, name: str) -> None:
    block = "block fuse(c, side: tensor) { concat { conv 3x3 c; @side } }\n"
    before = "a: conv 3x3 4\npath.0: conv 3x3 6\nconv 3x3 7\n"
    text = f"input 3x8x8\n{block}{before}conv 3x3 1 | {call}\nadd {{ in; in | conv 1x1 in.c }}\n"
    text = text.replace("@a", "in" if name == "in" else f"@{name}")
    graph = loads(text)
    concat = next(node for node in graph.nodes if node.op.name == "concat")
    assert concat.inputs[1] == {"a": 0, "path.0": 1, "in": 2}[name]
    assert concat.shape[0] == 5 + {"a": 4, "path.0": 6, "in": 7}[name]
    assert format(format(text)) == format(text)
    assert structure(loads(format(text))) == structure(graph)


def test_a_repeated_call_reads_the_same_tensor_each_time() -> None:
    block = "block fuse(side: tensor) { add { conv 3x3 in.c; @side } }\n"
    for call in ("fuse x3 @a", "repeat 3 { fuse side=@a }", "fuse @a; fuse @a; fuse @a"):
        graph = loads(f"input 3x8x8\n{block}a: conv 3x3 4\nconv 3x3 4 | relu\n{call}\n")
        joins = [node.inputs for node in graph.nodes if node.op.name == "add"]
        assert joins == [(3, 0), (5, 0), (7, 0)]


def test_blocks_pass_tensors_on_and_do_not_see_those_of_their_callers() -> None:
    text = """
input 3x8x8
block inner(a: tensor, b: tensor) { concat { in; @a; @b } }
block outer(a: tensor, b: tensor) {
    x: conv 1x1 1
    inner @b a=in
}
a: conv 3x3 2
b: conv 3x3 3
outer @b @a
"""
    assert [d.code for d in check(text)] == ["E0206"]
    graph = loads(text.replace("inner @b a=in", "inner @b in").replace("outer @b @a", "outer b=@a a=@b"))
    concat = graph.nodes[-1]
    assert (concat.op.name, concat.inputs) == ("concat", (2, 0, 2))


def test_inner_braces_hide_a_parameter_and_values_do_not() -> None:
    body = "let side = 2; add { in; { side: conv 3x3 in.c; add { in; @side | conv 1x1 in.c } } ; @side }"
    graph = loads(f"input 3x8x8\nblock fuse(side: tensor) {{ {body} }}\na: conv 3x3 3\nrelu | fuse @a\n")
    inner, outer = [node.inputs for node in graph.nodes if node.op.name == "add"]
    assert inner[0] == 2
    assert outer == (1, 4, 0)


def test_parameters_that_are_not_tensors_keep_the_names_of_values() -> None:
    block = "block fuse(width, side: tensor) { concat { conv 3x3 width; @side } }\n"
    graph = loads(f"input 3x8x8\nparam side = 7\nparam width = 9\n{block}a: conv 3x3 side\nfuse 5 @a\n")
    assert graph.output_shape == (12, 8, 8)


def test_defaults_of_the_file_pass_tensors() -> None:
    block = "block fuse(c, side: tensor) { concat { conv 3x3 c; @side } }\n"
    graph = loads(f"input 3x8x8\n{block}default fuse side=@a\na: conv 3x3 4\nfuse 5\na2: fuse 6 @a\n")
    assert [node.inputs for node in graph.nodes if node.op.name == "concat"] == [(1, 0), (3, 0)]


def test_models_with_tensor_parameters_survive_json() -> None:
    model = loads(UNET).model
    assert Model.model_validate_json(model.model_dump_json()) == model


def test_a_condition_in_the_block_leaves_the_tensor_unread() -> None:
    block = "block fuse(side: tensor, joined = true) { if joined { add { in; @side } } }\n"
    graph = loads(f"input 3x8x8\n{block}a: relu\nconv 3x3 3 | fuse @a | fuse @a false\n")
    assert [node.op.name for node in graph.nodes] == ["relu", "conv", "add"]


# --- torch ----------------------------------------------------------------------------------------


def _reference() -> torch.nn.Module:
    import torch
    from torch import nn
    from torch.nn.functional import interpolate

    class Double(nn.Module):
        def __init__(self, before: int, c: int) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(before, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv2(self.conv1(x).relu()).relu()

    class Up(nn.Module):
        def __init__(self, before: int, skipped: int, c: int) -> None:
            super().__init__()
            self.up = nn.Conv2d(before, c, 3, padding=1)
            self.body = Double(c + skipped, c)

        def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
            x = self.up(interpolate(x, skip.shape[2:], mode="bilinear", align_corners=False))
            return self.body(torch.cat([x, skip], 1))

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc1, self.enc2, self.mid = Double(3, 4), Double(4, 8), Double(8, 16)
            self.dec2, self.dec1 = Up(16, 8, 8), Up(8, 4, 4)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pool = nn.functional.max_pool2d
            one = self.enc1(x)
            two = self.enc2(pool(one, 2))
            x = self.dec2(self.mid(pool(two, 2)), two)
            return self.head(self.dec1(x, one))

    return UNet()


@pytest.mark.parametrize("size", [(32, 40), (33, 21), (4, 5)])
def test_keys_outputs_and_gradients_equal_a_hand_written_module(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    from cnnspec.api import build

    module, reference = build(loads(UNET)), _reference()
    assert set(module.state_dict()) == set(reference.state_dict())
    reference.load_state_dict(module.state_dict())
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    outputs = [net(images) for net in (module, reference)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    expected = dict(reference.named_parameters())
    assert all(torch.equal(p.grad, expected[name].grad) for name, p in module.named_parameters())


def test_the_set_of_sizes_is_that_of_torch() -> None:
    pytest.importorskip("torch")
    from cnnspec.testing.oracle import compare_sizes_with_torch

    text = f"input 3x24x24\n{GATE}a: conv 3x3 4 | relu\nb: maxpool 3x2 | conv 3x3 6 pad=0\nmaxpool 2 | conv 3x3 5\n"
    graph = loads(f"{text}gate 3 in @b\ngate 2 @b skip=@a\nconv 5x5 2 pad=1\nmaxpool 2\n")
    accepted, rejected = compare_sizes_with_torch(graph, [(h, w) for h in range(1, 31) for w in range(1, 31)])
    assert accepted > 300
    assert rejected > 100
