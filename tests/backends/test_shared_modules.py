"""Modules that are used again, against modules of torch that are written by hand."""

# ruff: noqa: E402

from __future__ import annotations

import copy
import pickle
import random
import re
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from analysis.test_cost import (
    hold_against_flop_counter,
    hold_against_live_storages,
    hold_against_torch,
)
from backends.test_source import assert_equal, import_source
from torch import Tensor, nn

from cnnspec.analysis import diff
from cnnspec.analysis.summary import summarize
from cnnspec.api import build, loads
from cnnspec.backends.diagram import draw
from cnnspec.backends.source import write_source
from cnnspec.backends.torch.folding import fold
from cnnspec.compiler import compile_source, format_text
from cnnspec.diagnostics import Source
from cnnspec.testing.oracle import compare_sizes_with_torch, compare_training_step, compare_with_torch, draw_sizes


def conv_bn(before: int, c: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, c, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c)]


class Classifier(nn.Sequential):
    def __init__(self, features: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 10))


class Recurrent(nn.Module):
    """A cell that is applied five times, with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.cell = nn.Sequential(*conv_bn(8, 8), nn.ReLU())
        self.head = Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cell(self.stem(x))
        for _ in range(3):
            x = self.cell(x)
        return self.head(x + self.cell(x))


class Pyramid(nn.Module):
    """A head with a block, used for maps of three sizes."""

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
            self.norm = nn.GroupNorm(2, 8)
            self.out = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x + torch.relu(self.norm(self.conv1(x))))

    def __init__(self) -> None:
        super().__init__()
        self.c3 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.c4 = nn.Conv2d(8, 8, 3, 2, 1, bias=False)
        self.c5 = nn.Conv2d(8, 8, 3, 2, 1, bias=False)
        self.tower = self.Tower()
        self.fc = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        c3 = self.c3(x)
        c4 = self.c4(c3)
        maps = [self.tower(y) for y in (c3, c4, self.c5(c4))]
        return self.fc(torch.cat([y.mean((2, 3), keepdim=True) for y in maps], 1).flatten(1))


class Siamese(nn.Module):
    """Two images of three channels, one encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*conv_bn(3, 8, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.encoder(x[:, :3]), self.encoder(x[:, 3:])], 1))


class Nested(nn.Module):
    """A module that uses its own parts twice, and is used twice itself."""

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(*conv_bn(8, 8))
            self.gain = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gain * self.a(torch.sigmoid(self.a(x)))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.outer = self.Part()
        self.head = Classifier(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.outer(self.outer(self.stem(x))))


class Layers(nn.Module):
    """Single layers, one of them without weights, that follow one another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=True)
        self.act = nn.PReLU(3)
        self.head = Classifier(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(self.conv(x)))
        return self.head(self.conv(self.act(nn.functional.max_pool2d(x, 2))))


class Case(NamedTuple):
    text: str
    module: type[nn.Module]


CASES = {
    "recurrent": Case(
        """input 3x16x12
        stem conv 3x3 8
        cell: conv 3x3 8 | bn | relu
        repeat 3 { again @cell }
        add { in; again @cell }
        head  global_avgpool | flatten | linear 10""",
        Recurrent,
    ),
    "pyramid": Case(
        """input 3x16x12
        block tower(c) {
            add {
                in
                {
                    conv1: conv 3x3 in.c bias
                    norm:  gn 2
                    relu
                }
            }
            out: conv 1x1 c bias
        }
        c3: conv 3x3 8
        c4: conv 3x3 8 stride=2
        c5: conv 3x3 8 stride=2
        @c3
        tower: tower 4
        concat {
            @tower | global_avgpool
            @c4 | again @tower | global_avgpool
            @c5 | again @tower | global_avgpool
        }
        flatten
        fc: linear 10""",
        Pyramid,
    ),
    "siamese": Case(
        """input 6x16x12
        image: in
        slice 0..3
        encoder: conv 3x3 8 stride=2 | bn | relu | global_avgpool | flatten
        concat { in; @image | slice 3..6 | again @encoder }
        head linear 10""",
        Siamese,
    ),
    "nested": Case(
        """input 3x16x12
        stem conv 3x3 8
        outer: add {
            in
            { a: conv 3x3 8 | bn; sigmoid; again @a; gain: scale 0.5 shape=scalar bare }
        }
        again @outer
        head global_avgpool | flatten | linear 10""",
        Nested,
    ),
    "layers": Case(
        """input 3x16x12
        conv: conv 3x3 3 bias
        again @conv
        act: prelu 3
        maxpool 2
        again @act | again @conv
        head global_avgpool | flatten | linear 10""",
        Layers,
    ),
}
"""Specs, each with a module that is written by hand and has the same keys."""


def network(name: str) -> Any:
    return loads(CASES[name].text)


def assert_equal_gradients(built: nn.Module, expected: nn.Module) -> None:
    gradients = dict(expected.named_parameters())
    for key, weight in built.named_parameters():
        assert torch.equal(weight.grad, gradients[key].grad), key


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_a_module_written_by_hand_computes(name: str) -> None:
    graph, expected = network(name), CASES[name].module()
    built = build(graph)
    assert set(built.state_dict()) == set(expected.state_dict())
    built.load_state_dict(expected.state_dict())
    assert graph.parameter_count == sum(w.numel() for w in expected.parameters())
    x = torch.randn(3, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    for training in (False, True, False):  # the running statistics of two uses follow one another
        found, wanted = (module.train(training)(x) for module in (built, expected))
        assert torch.equal(found, wanted)
    for module in (built, expected):
        module.train()(x).square().mean().backward()
    assert_equal_gradients(built, expected)


@pytest.mark.parametrize("name", CASES)
def test_counts_and_sizes_are_those_of_torch(name: str) -> None:
    graph, rng = network(name), random.Random(0)
    compare_with_torch(graph, draw_sizes(graph, rng, 3))
    compare_sizes_with_torch(graph, [(h, w) for h in range(1, 20) for w in (1, 2, 7, h)])
    compare_training_step(graph)
    hold_against_torch(CASES[name].text)
    values = {(h, w): graph.at(h, w).macs for h, w in draw_sizes(graph, rng, 4)}
    assert values == {size: graph.symbolic.macs(*size) for size in values}


@pytest.mark.parametrize("name", CASES)
def test_exported_source_shares_the_module(name: str) -> None:
    text = assert_equal(network(name))
    assert text.count("nn.Conv2d(8, 8, 3") <= 4


@pytest.mark.parametrize("name", CASES)
def test_copies_and_features_and_folding(name: str) -> None:
    graph = network(name)
    built = build(graph).eval()
    x = torch.randn(2, *graph.input_shape)
    for other in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert torch.equal(other(x), built(x))
    assert torch.allclose(fold(built)(x), built(x), atol=1e-5)


def test_features_of_a_later_use() -> None:
    """A feature may need only a later use of a module, whose weights must exist all the same."""
    graph = loads(
        "input 3x8x8\na: conv 3x3 3 | bn\nb: maxpool 2\nmain: { again @a; relu }\n"
        "concat { @a | maxpool 2; in }\nlast: conv 1x1 4"
    )
    for outputs, keys in ((["main"], 6), (["a"], 6), (["last", "a"], 7), (["a.0", "main"], 6)):
        tapped = build(graph, outputs=outputs)
        assert len(tapped.state_dict()) == keys, outputs
        whole = build(graph).eval()
        tapped.load_state_dict({key: whole.state_dict()[key] for key in tapped.state_dict()})
        x = torch.randn(2, 3, 8, 8)
        found = tapped.eval()(x)
        assert list(found) == outputs
        assert torch.equal(found[outputs[0]], whole.a[1](whole.a[0](x))) or outputs[0] != "a"
        exported = import_source(write_source(tapped.graph)).eval()
        exported.load_state_dict(tapped.state_dict())
        assert all(torch.equal(y, found[path]) for path, y in exported(x).items())
        assert tapped.graph.parameter_count == sum(weight.numel() for weight in tapped.parameters())


@pytest.mark.parametrize("outputs", [["right"], ["h.0", "right"], ["h.u", "right"], ["right.0"], ["h"]])
def test_features_that_need_no_first_use(outputs: list[str]) -> None:
    graph = loads(
        "input 3x8x8\nclasses 10\nstem conv 3x3 8\nh: { conv 3x3 8 | bn; u: { relu | conv 1x1 8 } }\n"
        "right: @stem | { conv 1x1 8 | again @h | conv 1x1 8 }\n"
        "concat { @h; @right }\nglobal_avgpool | flatten | linear 10"
    )
    whole, tapped = build(graph).eval(), build(graph, outputs=outputs).eval()
    assert {"h.0.weight", "h.u.1.weight"} <= {*tapped.state_dict()} or outputs == ["right.0"]
    tapped.load_state_dict({key: whole.state_dict()[key] for key in tapped.state_dict()})
    x = torch.randn(2, 3, 8, 8)
    layer = whole.get_submodule

    def h(x: torch.Tensor) -> torch.Tensor:
        return layer("h.u.1")(layer("h.1")(layer("h.0")(x)).relu())

    stem = layer("stem")(x)
    found = {"h.0": layer("h.0")(stem), "h.u": h(stem), "h": h(stem), "right.0": layer("right.0")(stem)}
    found["right"] = layer("right.1")(h(found["right.0"]))
    assert all(torch.equal(y, found[path]) for path, y in tapped(x).items())
    assert tapped.graph.parameter_count == sum(weight.numel() for weight in tapped.parameters())
    exported = import_source(write_source(tapped.graph)).eval()
    exported.load_state_dict(tapped.state_dict())
    assert all(torch.equal(y, found[path]) for path, y in exported(x).items())


def test_an_auxiliary_head_shares_a_module() -> None:
    graph = loads(
        "input 3x8x8\nclasses 4\nstem conv 3x3 8\ncell: conv 3x3 8 | bn | relu\nmid: conv 3x3 8\n"
        "pool: global_avgpool | flatten\nfc: linear classes\n"
        "aux side from @mid weight=0.3 { again @cell | again @pool | again @fc }"
    )
    assert not [key for key in build(graph).state_dict() if key.startswith("side")]
    compare_with_torch(graph, [(8, 8), (5, 9)])
    compare_training_step(graph)
    assert_equal(graph)
    hold_against_flop_counter(graph)


def test_an_activation_works_in_place_only_if_all_of_its_uses_can() -> None:
    text = "input 3x8x8\nconv 3x3 3\nact: relu\nx: conv 3x3 3\nagain @act\nadd { in; @x }\nglobal_avgpool"
    graph = loads(text)
    built = build(graph)
    assert built.act.inplace is False
    y = built[0](torch.randn(1, 3, 8, 8))
    hold_against_live_storages(text)
    assert built.act(y) is not y


def test_the_summary_says_that_a_row_is_shared() -> None:
    rows = {row.path: row for row in summarize(network("recurrent")).rows}
    assert [path for path in rows if path.startswith("cell#")][:5] == [
        "cell#2",
        "cell#2.0",
        "cell#2.1",
        "cell#2.2",
        "cell#3",
    ]
    assert (rows["cell#2"].kind, rows["cell#5.0"].kind, rows["cell.0"].kind) == ("shared", "conv, shared", "conv")
    assert (rows["cell"].parameters, rows["cell#2"].parameters) == (592, 0)
    assert rows["cell"].macs == rows["cell#2"].macs > 0
    assert rows["cell#5"].depth == rows["cell"].depth + 4


BLOCK = "block last() { global_avgpool | flatten | linear classes }\n"
HEADS = ["again @cls", "conv 1x1 8 | again @cls", "again @conv1 | again @cls", "repeat 2 { again @conv1 } | again @cls",
         "add { again @conv1; in } | again @cls", "conv 1x1 8; global_avgpool; flatten; linear classes",
         "again @pool | again @flat | again @fc", "global_avgpool; flatten; again @fc"]  # fmt: skip


@pytest.mark.parametrize("body", HEADS)
@pytest.mark.parametrize("name", ["extra", "relu", "norm"])
@pytest.mark.parametrize("last", ["cls: { pool: global_avgpool; flat: flatten; fc: linear classes }", "cls: last"])
def test_every_auxiliary_head_is_marked_in_the_summary_and_in_diagrams(last: str, name: str, body: str) -> None:
    tail = "pool: global_avgpool\nflat: flatten\nfc: linear classes" if "@fc" in body else last
    text = f"{BLOCK}input 3x8x8\nclasses 5\nmid: conv 3x3 8\nconv1: conv 3x3 8\n{tail}\n"
    graph = loads(f"{text}aux {name} from @mid weight=0.25 {{ {body} }}\n")
    rows = [row for row in summarize(graph).rows if row.path == name or row.kind.endswith(f"aux {name}")]
    assert rows
    uses = {node.place.partition("#")[0] for node in graph if node.use is not None}
    assert {row.path.partition("#")[0] for row in rows if "#" in row.path} == {use for use in uses if "." not in use}
    page = draw(graph, ".mmd").decode()
    marks = re.findall(rf"(?:#35;\d+ in {name}|\b{name}), weight 0\.25\b", page)
    assert marks
    assert not re.search(r"weight 0\.25", draw(loads(text), ".mmd").decode())


def test_a_difference_of_uses_is_a_difference() -> None:
    one, two, other = (
        loads(f"input 3x8x8\na: conv 3x3 3\nb: conv 3x3 3\n{rest}\nglobal_avgpool")
        for rest in ("again @a", "again @b", "@a | again @b\nadd { in; @b }")
    )
    assert {change.path for change in diff.compare(one, two).changes} == {"a#2", "b#2"}
    assert any(change.path == "b#2" and "of a" in change.after for change in diff.compare(two, other).changes)


def test_init_and_learning_rates_count_a_module_once() -> None:
    torch.manual_seed(0)
    graph = loads(
        "input 3x8x8\nclasses 2\ninit conv constant weight=0.5\na: conv 3x3 3\nagain @a\n"
        "head global_avgpool | flatten | linear classes\n"
        "train { freeze a; ema 0.9 }"
    )
    assert build(graph).a.weight.unique().tolist() == [0.5]
    from cnnspec.semantics.recipe_rules import frozen_modules

    assert frozen_modules(graph.recipe, graph) == {"a"}


def test_again_is_no_reserved_word() -> None:
    text = "input 3x8x8\n\nblock again(c) {\n    conv 3x3 c\n}\n\nlet n = 4\nagain n\nagain: again 4\nagain @again\n"
    graph = loads(text)
    assert [node.place for node in graph] == ["0.0", "again.0", "again#2.0"]
    assert format_text(Source("text", text)) == text


def test_uses_are_limited() -> None:
    doubled = "\n".join(f"x{i}: {{ again @x{i - 1}; again @x{i - 1} }}" for i in range(1, 40))
    done = compile_source(Source("bomb", f"input 3x8x8\nx0: conv 3x3 3\n{doubled}"))
    assert [diagnostic.code for diagnostic in done.reporter.sorted()] == ["E0404"]
