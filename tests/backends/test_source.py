"""Test the source backend: exported code has the keys and the logits of the torch backend, to the bit."""

from __future__ import annotations

import ast
import builtins
import contextlib
import random
import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from test_torch_module import CASES, single
from torch import Tensor, nn

from cnnspec import Graph, load, loads
from cnnspec.backends.source import write_source
from cnnspec.backends.source.rows import EXPRESSIONS, MODULES
from cnnspec.backends.torch import layers
from cnnspec.backends.torch.module import Network, split_images, to_module
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source
from cnnspec.ir import AuxHead
from cnnspec.resources import resource
from cnnspec.shapes import Shape
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.generator import SpecGenerator

SHIPPED = sorted(path.stem for path in resource("specs").glob("*.cnn"))
QUICK = ["resnet20", "preact_resnet20", "densenet_cifar", "googlenet_cifar", "resnet18", "lenet5"]
PAYLOAD = 'x"; \'""" \n\\"""\nimport builtins; builtins.injected = True\n"""\'{0}{x}\u202e\\'
"""Text that ends every kind of literal and comment, and then runs code."""

pytestmark = pytest.mark.usefixtures("one_thread")


def import_source(text: str) -> nn.Module:
    """Run exported code, and return its last class, the network. It creates no module that it throws away."""
    module = types.ModuleType("exported")
    exec(compile(text, "exported.py", "exec", dont_inherit=True), module.__dict__)
    kinds = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == "exported"]
    with patch.object(nn.Module, "__init__", autospec=True, side_effect=nn.Module.__init__) as created:
        network = kinds[-1]()
    assert created.call_count == len([*network.modules()])
    return network


def small(graph: Graph) -> tuple[int, int]:
    """Return the declared size, or a smaller one of an ImageNet."""
    height, width = graph.input_shape[1:]
    near = (side for side in (32, 64, 75, 96, 128, 160) if graph.accepts(side, side))
    return (height, width) if height * width <= 64 * 64 else next(((side, side) for side in near), (height, width))


def outputs(network: nn.Module, images: Sequence[Tensor]) -> list[Tensor] | str:
    """Return all outputs, or the error of a batch norm that gets a single value."""
    torch.manual_seed(1)
    try:
        found = network(*(image.clone() for image in images))
    except ValueError as error:
        return str(error)
    if isinstance(found, dict):
        assert [*found] == [*network.graph.taps] if hasattr(network, "graph") else True
        return [*found.values()]
    return [found] if isinstance(found, Tensor) else [found[0], *found[1]]


def assert_equal(graph: Graph, text: str | None = None) -> str:
    """Compare exported code with the torch backend: keys in order, outputs in evaluation and in training."""
    text = write_source(graph) if text is None else text
    network, exported = to_module(graph), import_source(text)
    weights = network.state_dict()
    assert list(exported.state_dict()) == list(weights)
    exported.load_state_dict(weights)
    images = (
        torch.randn(2, graph.input_shape[0], *small(graph))
        if len(graph.input_shape) == 3
        else torch.randn(2, *graph.input_shape)
    )
    images = split_images(graph, images)
    for training in (False, True):
        network.train(training)
        exported.train(training)
        expected, found = outputs(network, images), outputs(exported, images)
        if isinstance(expected, str):
            assert expected == found
            continue
        assert len(expected) == len(found)
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b) or (a.isnan().equal(b.isnan()) and a.nan_to_num().equal(b.nan_to_num()))  # type: ignore[union-attr]
    return text


def assert_formatted(folder: Path) -> None:
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--check", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def drawn(seed: int) -> Graph:
    return compile_source(
        Source("drawn", format_file(SpecGenerator(random.Random(seed).randint).file()))
    ).require_graph()


def test_every_operator_has_a_row() -> None:
    assert set(MODULES) == set(layers.ROWS)
    assert set(EXPRESSIONS) == set(layers.EXPRESSIONS)


@pytest.mark.parametrize(("name", "shape", "settings"), CASES)
def test_an_operator(name: str, shape: Shape, settings: dict) -> None:
    assert_equal(single(name, shape, settings))


@pytest.mark.parametrize("name", QUICK)
def test_a_shipped_spec(name: str, tmp_path: Path) -> None:
    (tmp_path / "exported.py").write_text(assert_equal(load(name)))
    assert_formatted(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_spec(name: str, tmp_path: Path) -> None:
    test_a_shipped_spec(name, tmp_path)


@pytest.mark.parametrize(
    "seeds", [range(60), pytest.param(range(60, 2000), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_drawn_specs(seeds: range, tmp_path: Path) -> None:
    for seed in seeds:
        (tmp_path / f"drawn{seed}.py").write_text(assert_equal(drawn(seed)))
    assert_formatted(tmp_path)


def test_the_code_imports_only_torch_and_needs_no_cnnspec(tmp_path: Path) -> None:
    text = write_source(
        load("googlenet_cifar"),
        {"CLASSES": ["cat", "dog"], "PREPROCESSING": {"mean": (0.5,), "resize": None, "on": True}},
    )
    imported = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert {ast.unparse(node) for node in imported} == {"import torch", "from torch import Tensor, nn"}
    (tmp_path / "exported.py").write_text(text)
    code = "import sys, exported; assert 'cnnspec' not in sys.modules; print(exported.CLASSES, exported.PREPROCESSING)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "['cat', 'dog'] {'mean': [0.5], 'resize': None, 'on': True}\n", done.stderr


def test_it_needs_no_torch() -> None:
    from test_architecture import run_without_torch

    done = run_without_torch(
        "import cnnspec\nfrom cnnspec.backends.source import write_source\nprint(write_source(cnnspec.load('lenet5')))"
    )
    assert "class Lenet5(nn.Module):" in done.stdout, done.stderr


# --- readability -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "lines"),
    [
        ("resnet18", ["TvBasicBlock", "Resnet18"], 120),
        ("resnet1202", ["ResnetBlock", "Resnet1202"], 100),
        ("densenet201", ["DenseLayer", "Transition", "Denseblock", "Features", "Densenet201"], 150),
        ("googlenet", ["ConvBn", "Inception", "Aux", "Googlenet"], 300),
    ],
)
def test_a_block_is_a_class_and_a_repeat_is_a_loop(name: str, classes: list[str], lines: int) -> None:
    text = write_source(load(name))
    assert [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef)] == classes
    assert len(text.splitlines()) <= lines
    if name != "googlenet":
        assert (
            any(isinstance(node, (ast.For, ast.ListComp)) for node in ast.walk(ast.parse(text))) or name == "resnet18"
        )


LOOPS = {
    "numbers in names, growing channels": "a: { repeat 20 { concat { in; { bn | conv 3x3 4 } } } }",
    "a chain": "repeat 9 { bn | relu | conv 3x3 8 }",
    "skips within a turn": "repeat 7 { add { in; conv 3x3 4 | relu } | relu }",
    "a value from before": "a: conv 3x3 8\n repeat 5 { add { in; @a } | bn }",
    "arguments that do not progress": "conv 1x1 2 | conv 1x1 3 | conv 1x1 5 | conv 1x1 7 | conv 1x1 11 | conv 1x1 13",
    "a value read later": "repeat 4 { conv 1x1 4 }\n a: conv 1x1 4 | relu\n repeat 4 { conv 1x1 4 }\n add { in; @a }",
    "a shared module between others": "a: conv 3x3 4\n b: { repeat 4 { again @a | bn | relu } }",
    "shared modules in other scopes": "a.x: conv 1 4\n b.c: { repeat 4 { bn | again @a.x } }\n repeat 3 { again @b.c }",
    "shared modules with numbers": "".join(f"l{n}: conv 1 4 | bn\n" for n in (7, 12))
    + "again @l7 | again @l7 | again @l7 | again @l12 | again @l12 | again @l12 | again @l7",
    "shared modules in turn": "".join(f"l.{n}: conv 1 4\n" for n in range(9))
    + " | ".join(f"again @l.{n}" for n in (0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 5, 4, 3, 2, 1, 0, 1, 0, 1, 0, 1, 8)),
    "numbers that decrease": 'repeat 6 as i { conv 1x1 9-i | scale 0.5 }\n repeat 5 as i { conv 3 4 name="c{9 - i}" }',
    "slices that move": "repeat 4 as i { concat { slice 0..1+i; in } }",
}


@pytest.mark.parametrize("body", LOOPS.values(), ids=LOOPS)
def test_repetitions(body: str, tmp_path: Path) -> None:
    text = assert_equal(loads(f"input 4x9x9\n{body}\n global_avgpool | flatten | linear 3"))
    (tmp_path / "exported.py").write_text(text)
    assert_formatted(tmp_path)


def test_a_layer_that_some_calls_leave_out_is_optional() -> None:
    text = assert_equal(
        loads(
            """
            input 4x9x9
            block residual(c, stride = 1) {
                add {
                    conv 3x3 c stride=stride
                    shortcut: conv 1x1 c stride=stride | bn  when in.c != c
                }
            }
            residual 4
            residual 8 stride=2
            residual 8
            residual 12 stride=3
            """
        )
    )
    assert text.count("class ") == 2
    assert "if shortcut:" in text


def test_scopes_that_are_not_consecutive() -> None:
    graph = loads("input 4x9x9\na: { conv 1x1 4 | bn }\nb: { conv 1x1 4 | bn }\nglobal_avgpool | flatten | linear 3")
    names = {"a.0": "s.0", "a.1": "s.training", "b.0": "t.0", "b.1": "s.2"}
    nodes = tuple(replace(node, path=names.get(node.path, node.path)) for node in graph.nodes)
    assert_equal(replace(graph, nodes=nodes, scopes={}, ends={}))


# --- names and texts from strangers -----------------------------------------------------------------

LABELS = """training type forward half _modules __init__ __x x self torch nn Tensor class lambda range getattr super
    None _count load_state_dict parameters i SPEC Scope print""".split()


@pytest.mark.parametrize(
    "body",
    [
        "a.b.c: conv 1x1 4 | bn\nrelu\na.b.d: conv 1x1 4\na.e: bn",
        "a.0.0: conv 1x1 4\na.1.0: conv 1x1 4\na.0.1: conv 1x1 4 | relu\na.1.1: bn",
        'gain: scale bare | shift bare name="a.b"\ntype: scale bare\nbn\nscale 0.5 shape=map bare',
        'repeat 5 as i { conv 1x1 4 name="c{i}" | scale bare shape=one name="s{i}" }',
        'repeat 5 as i { scale bare shape=scalar name="type{i}" | linear 4 pointwise name="l-{i}" }',
        "g: { scale bare | shift bare | scale shape=map }\nb: scale bare repeat=4",
        "a: bn\nb: { maxpool 2 | conv 1x1 4 }\nupsample like=@a\nrepeat 3 { maxpool 3 | upsample like=@a }",
        "p.0: relu | bn\np.1: maxpool 2 | scale bare\np.2: relu | tanh\nagain @p.1 | relu | again @p.0 | again @p.2",
        "block up() { x: bn\n maxpool 2\n upsample like=@x mode=bilinear }\nup x3\ny: in\nbn\nup: upsample like=@y",
    ],
)
def test_paths_and_parameters_without_a_module(body: str) -> None:
    assert_equal(loads(f"input 4x6x6\n{body}\n"))


def test_code_with_every_class_runs_alone(tmp_path: Path) -> None:
    """The code of a helper class may use no name that the exported file does not import."""
    body = "blurpool stride=1\nconv 3 4 standardize gain\nchannel_conv 3\nsoftmax parts=2\n"
    body += "conv 3 4 pad=tf_same\nmaxpool 2 pad=tf_same\navgpool 2 pad=tf_same\nscale\nscale bare\nshift\nln\n"
    body += "linear 4 pointwise\ndrop_path 0.1\ntimes 2.0\nupsample like=in\nmean over=h\nmax over=w\n"
    body += "shake_drop 0.1\ntraining: { relu | bn }\nshake_shake\n"
    text = write_source(loads(f"input 3x9x9\n{body}"))
    (tmp_path / "exported.py").write_text(text)
    done = subprocess.run([sys.executable, str(tmp_path / "exported.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_labels_that_mean_something_in_python(tmp_path: Path) -> None:
    layers = "\n".join(f"{label}: conv 1x1 4" for label in LABELS)
    inner = "\n".join(f"  {label}: {{ bn; training: bn }}" for label in LABELS)
    blocks = "\n".join(f"block {name}() {{ {name}: bn\n relu\n conv 1x1 4 }}" for name in LABELS if name != "training")
    calls = "\n".join(name for name in LABELS if name != "training")
    with contextlib.suppress(ZeroDivisionError):
        graph = loads(
            f"input 4x9x9\n{blocks}\n{layers}\ng: {{\n{inner}\n}}\n{calls}\nglobal_avgpool | flatten | linear 3"
        )
    (tmp_path / "exported.py").write_text(assert_equal(graph))
    assert_formatted(tmp_path)


def test_no_text_of_a_spec_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "injected", False, raising=False)
    graph = load("googlenet_cifar")
    blocks = {path: PAYLOAD if block else PAYLOAD[:-1] for path, block in graph.scopes.items()}
    nodes = tuple(replace(node, path=f"{node.path}{PAYLOAD}".replace(".", "")) for node in graph.nodes)
    aux = tuple(AuxHead(PAYLOAD, head.output, head.weight) for head in graph.aux)
    for hostile in (
        replace(graph, name=PAYLOAD, text=PAYLOAD, scopes=blocks, aux=aux),
        replace(graph, nodes=nodes, scopes={node.path: PAYLOAD for node in nodes}),
        replace(graph, nodes=tuple(replace(node, path=f"a{PAYLOAD}.{node.path}") for node in graph.nodes), scopes={}),
        replace(graph, aux=(), taps={PAYLOAD: graph.output}),
    ):
        text = write_source(
            hostile, {"CLASSES": [PAYLOAD, "\0"], "PREPROCESSING": {PAYLOAD: PAYLOAD, "list": [PAYLOAD]}}
        )
        with contextlib.suppress(KeyError):  # torch refuses a name with a dot
            import_source(text)
        namespace: dict = {}
        exec(text[text.index("CLASSES = ") :], namespace)
        assert namespace["CLASSES"] == [PAYLOAD, "\0"]
        assert namespace["PREPROCESSING"] == {PAYLOAD: PAYLOAD, "list": [PAYLOAD]}
        assert namespace["SPEC"] == hostile.text
    assert not builtins.injected  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["", "a", '"', '""', '"""', "\\", 'x\\"""', "\r\n", "é\u202e\ud800\0", "a\n\n" * 3])
def test_a_spec_is_kept_exactly(text: str) -> None:
    exported = write_source(replace(load("lenet5"), text=text))
    namespace: dict = {}
    exec(exported[exported.index("SPEC = ") :], namespace)
    assert namespace["SPEC"] == text


def test_features_and_heads() -> None:
    graph = load("googlenet_cifar")
    tapped = replace(graph, aux=(), taps={"stem": 4, "logits": graph.output})
    network, exported = to_module(tapped).eval(), import_source(write_source(tapped)).eval()
    exported.load_state_dict(network.state_dict(), strict=False)
    assert isinstance(network, Network)
    found, expected = exported(torch.ones(2, *graph.input_shape)), network(torch.ones(2, *graph.input_shape))
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
