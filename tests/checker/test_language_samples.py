"""Samples of the language: each one is valid, is formatted already, and has the expected meaning."""

from __future__ import annotations

import pytest

from cnnspec import api
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source, render
from cnnspec.ir import Graph

HEADER = "network t\ninput {}\nclasses 10\n\n"

RESNET20 = """\
# ResNet-20 for CIFAR-10
# source: He et al. 2015, section 4.2; shortcut and recipe of the UvA deep learning tutorial 5
network resnet20
input 3x32x32
classes 10

stem  conv 3x3 c=16 | bn | relu
stage resnet_block x3 c=16
stage resnet_block x3 c=32 subsample
stage resnet_block x3 c=64 subsample
head  global_avgpool | flatten | linear classes

init conv kaiming_normal mode=fan_out

expect params = 272378
expect macs = 40.8M within 1%

train {
    data      cifar10 val=5000
    augment   hflip | random_resized_crop scale=0.8..1.0 ratio=0.9..1.1
    optimizer sgd lr=0.1 momentum=0.9 weight_decay=1e-4
    schedule  multistep at=[100, 150] gamma=0.1
    epochs    180
    batch     128
}
"""

RESNET_BLOCK = """\
block resnet_block(c, once subsample = false, act: op = relu) {
    let stride = if subsample then 2 else 1
    add {
        net:        conv 3x3 c stride=stride | bn | act | conv 3x3 c | bn
        downsample: conv 1x1 c stride=stride bias  when subsample or in.c != c
    }
    act
}
"""

DENSE_LAYER = """\
block dense_layer(growth, bottleneck = 4, act: op = relu) {
    concat {
        in
        net: bn | act | conv 1x1 bottleneck*growth | bn | act | conv 3x3 growth
    }
}
"""

SQUEEZE_EXCITE = """\
block squeeze_excite(ratio = 16) {
    mul {
        in
        global_avgpool | conv 1x1 in.c//ratio bias | relu | conv 1x1 in.c bias | sigmoid
    }
}
"""

RESNET50 = """\
network resnet50
input 3x224x224
classes 1000

block tv_bottleneck(planes, once stride = 1, groups = 1, base_width = 64) {
    let width = planes * base_width // 64 * groups
    let out = 4 * planes
    add {
        {
            conv1: conv 1x1 width
            bn1:   bn
            relu
            conv2: conv 3x3 width stride=stride groups=groups
            bn2:   bn
            relu
            conv3: conv 1x1 out
            bn3:   bn
        }
        downsample: conv 1x1 out stride=stride | bn  when stride != 1 or in.c != out
    }
    relu
}

conv1: conv 7x7 64 stride=2
bn1:   bn
relu
maxpool 3x3 stride=2 pad=1
layer1: tv_bottleneck x3 64
layer2: tv_bottleneck x4 128 stride=2
layer3: tv_bottleneck x6 256 stride=2
layer4: tv_bottleneck x3 512 stride=2
global_avgpool | flatten
fc: linear classes

expect params = 25557032
"""

AUX = """\
aux aux1 from @inception4a weight=0.3 {
    adaptive_avgpool 4x4
    conv: conv_bn 1x1 128
    flatten
    fc1: linear 1024
    relu
    dropout 0.7
    fc2: linear classes
}
"""


def graph_of(text: str, image: str = "3x32x32") -> Graph:
    """The graph of a sample, behind a header if it has none; its format must be its own."""
    assert api.format(text) == text
    whole = text if text.startswith(("#", "network", "extends")) else HEADER.format(image) + text
    done = compile_source(Source("sample.cnn", whole))
    errors = [diagnostic for diagnostic in done.diagnostics if diagnostic.severity == "error"]
    assert not errors, "\n\n".join(map(render, errors))
    return done.require_graph()


def keys(graph: Graph) -> list[str]:
    return [key for node in graph for key in node.parameters]


def paths(graph: Graph) -> list[str]:
    return [node.path for node in graph]


def test_resnet20() -> None:
    graph = graph_of(RESNET20)
    assert (graph.name, graph.parameter_count, graph.macs, graph.depth) == ("resnet20", 272_378, 40_813_184, 20)
    recipe = graph.recipe
    assert (recipe.epochs, recipe.batch, recipe.optimizer.name) == (180, 128, "sgd")
    assert recipe.data.args == {"val": 5000, "train": None, "test": None}
    assert recipe.schedule.args == {"at": (100, 150), "gamma": 0.1, "warmup": 0.0}
    assert [step.name for step in recipe.augment] == ["hflip", "random_resized_crop"]
    assert recipe.augment[1].args == {"scale": (0.8, 1.0), "ratio": (0.9, 1.1)}


def test_resnet_block_is_the_shipped_one() -> None:
    calls = "\nresnet_block x2 16 subsample act=gelu\n"
    own, shipped = graph_of(RESNET_BLOCK + calls), graph_of(calls.lstrip())
    assert [(n.path, n.op, n.inputs, n.shape) for n in own] == [(n.path, n.op, n.inputs, n.shape) for n in shipped]
    # Only the first call subsamples and projects.
    assert [path for path in paths(own) if "downsample" in path] == ["0.downsample"]
    assert own.output_shape == (16, 16, 16)
    assert {node.op.name for node in own} == {"conv", "bn", "gelu", "add"}


def test_a_flag_is_handed_on_by_its_name() -> None:
    text = "block pair(c, subsample = false) {\n    resnet_block x2 c subsample=subsample\n}\n\npair 8 subsample\n"
    assert graph_of(text).output_shape == (8, 16, 16)


def test_dense_layer_and_squeeze_excite() -> None:
    calls = "\nconv 3x3 32\ndense_layer x3 12\nconv 1x1 32\nsqueeze_excite\n"
    graph = graph_of(DENSE_LAYER + "\n" + SQUEEZE_EXCITE + calls)
    shapes = {node.path: node.shape for node in graph if node.op.name in ("concat", "mul")}
    assert shapes == {"1": (44, 32, 32), "2": (56, 32, 32), "3": (68, 32, 32), "5": (32, 32, 32)}
    # The branch without a label adds no level.
    assert keys(graph)[-4:] == ["5.1.weight", "5.1.bias", "5.3.weight", "5.3.bias"]


def test_resnet50_has_the_names_of_torchvision() -> None:
    graph = graph_of(RESNET50)
    assert (graph.parameter_count, graph.macs) == (25_557_032, 4_089_184_256)
    names = keys(graph)
    assert names[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert {"layer1.0.conv1.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "fc.bias"} < set(names)
    assert [name for name in names if "downsample.0" in name] == [
        f"layer{n}.0.downsample.0.weight" for n in range(1, 5)
    ]


def test_stage_each() -> None:
    graph = graph_of(
        "stage each inception_block(c1 r3 c3 r5 c5 cp) {\n"
        "    a:  64  96 128 16 32 32\n"
        "    b: 128 128 192 32 96 64\n"
        "} | maxpool 3x3 stride=2 pad=1\n",
        "192x28x28",
    )
    # As GoogLeNet's inception 3a and 3b, arXiv 1409.4842, table 1.
    assert graph.output_shape == (480, 14, 14)
    assert [node.shape[0] for node in graph if node.op.name == "concat"] == [256, 480]
    assert (paths(graph)[-1], keys(graph)[0]) == ("stage1.0", "stage1.a.conv_1x1.conv.weight")


def test_each_with_repeat() -> None:
    graph = graph_of(
        "features: {\n"
        "    conv_bn 3x3 32 stride=2 act=relu6\n"
        "    each inverted_residual(expand c repeat stride) {\n"
        "        1 16 1 1\n"
        "        6 24 2 2\n"
        "        6 32 3 2\n"
        "    }\n"
        "}\n"
    )
    # Every call of a repeated row counts as one; `stride` is given to the first of them.
    assert list(dict.fromkeys(path.split(".")[1] for path in paths(graph))) == list("0123456")
    assert graph.output_shape == (32, 4, 4)
    assert [node.path for node in graph if node.op.name == "add"] == ["features.3", "features.5", "features.6"]


def test_concat_with_a_reference() -> None:
    text = "stage conv 3x3 16 | bn\nstage conv 3x3 16 | bn\nconcat { in; @stage1 | conv 1x1 32 }\n"
    graph = graph_of(text)
    assert graph.output_shape == (48, 32, 32)
    assert paths(graph)[-2:] == ["0", ""]
    assert graph.nodes[4].inputs == (1,)


def test_vgg_positions() -> None:
    rounds = [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]
    body = "".join(f"    repeat {n} {{ conv 3x3 {c} bias | relu }}\n    maxpool 2x2\n" for n, c in rounds)
    graph = graph_of("features: {\n" + body + "}\n")
    assert paths(graph) == [f"features.{n}" for n in range(31)]
    # torchvision's vgg16
    assert keys(graph)[::2] == [f"features.{n}.weight" for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]


def test_repeat_counts_from_0() -> None:
    graph = graph_of("repeat 3 as i { conv 3x3 16*(i+1) bias | relu }\n")
    assert [node.shape[0] for node in graph if node.op.name == "conv"] == [16, 32, 48]


def test_extends() -> None:
    graph = graph_of("extends resnet20 n=9\n")
    assert (graph.name, graph.depth, graph.parameter_count) == ("sample", 56, 855_674)
    assert graph_of("extends resnet20 n=9\nnetwork resnet56\n").name == "resnet56"


def test_use() -> None:
    graph = graph_of(
        'use conv_bn, tv_bottleneck from "blocks/torchvision.cnn"\n\nconv_bn 3x3 64\nlayer1: tv_bottleneck x3 64\n'
    )
    assert keys(graph)[:6] == [
        "0.conv.weight", "0.bn.weight", "0.bn.bias", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias"
    ]  # fmt: skip
    assert {node.op.settings()["eps"] for node in graph if node.path == "0.bn"} == {1e-3}


def test_aux() -> None:
    layers = "conv 7x7 64 stride=4 | bn | relu | maxpool 4x4\ninception4a: conv 3x3 512\n\n"
    head = "\nhead global_avgpool | flatten | linear classes\n"
    graph = graph_of(layers + AUX + head, "3x224x224")
    assert [(a.name, a.weight, graph.nodes[a.output].path) for a in graph.aux] == [("aux1", 0.3, "aux1.fc2")]
    assert graph.output_shape == (10,)
    assert [key for key in keys(graph) if key.startswith("aux1")] == [
        "aux1.conv.conv.weight", "aux1.conv.bn.weight", "aux1.conv.bn.bias",
        "aux1.fc1.weight", "aux1.fc1.bias", "aux1.fc2.weight", "aux1.fc2.bias",
    ]  # fmt: skip
    # Its multiply-adds are not those of the network, its weights are.
    plain = graph_of(layers.rstrip("\n") + "\n" + head.lstrip("\n"), "3x224x224")
    assert graph.macs == plain.macs
    assert graph.parameter_count > plain.parameter_count


def test_names_of_a_repeat() -> None:
    graph = graph_of('conv 3x3 16\ndense_layer x3 8 name="denselayer{n}"\ndense_layer repeat=2 8 name="extra{i}"\n')
    scopes = list(dict.fromkeys(path.split(".")[0] for path in paths(graph)))
    assert scopes == ["0", "denselayer1", "denselayer2", "denselayer3", "extra0", "extra1"]


def test_default_is_for_the_calls_of_this_file() -> None:
    text = (
        "default bn eps=1e-3\ndefault conv bias\ndefault resnet_block act=gelu\n\nconv 3x3 16 | bn\nresnet_block 16\n"
    )
    graph = graph_of(text)
    own, inner = graph.nodes[:2], graph.nodes[2:]
    assert "0.bias" in keys(graph)
    assert own[1].op.settings()["eps"] == 1e-3
    assert {node.op.settings()["eps"] for node in inner if node.op.name == "bn"} == {1e-5}
    assert [node.op.name for node in inner if node.op.name in ("relu", "gelu")] == ["gelu", "gelu"]


def test_a_default_that_uses_the_input() -> None:
    block = "block transition(c = in.c // 2) {\n    bn | relu | conv 1x1 c | avgpool 2x2\n}\n\n"
    assert graph_of(block + "conv 3x3 16\ntransition\ntransition 12\n").output_shape == (12, 8, 8)
    assert graph_of(block + "conv 3x3 16\ntransition x2\n").output_shape == (4, 8, 8)


@pytest.mark.parametrize(("flag", "joins"), [("", 1), (" residual=false", 0)])
def test_a_shortcut_that_may_be_absent(flag: str, joins: int) -> None:
    graph = graph_of(
        "block unit(c, residual = true) {\n"
        "    add {\n"
        "        conv 3x3 c | bn\n"
        "        if residual { in } else { nothing }\n"
        "    }\n"
        "    relu\n"
        "}\n\n"
        f"conv 3x3 16\nunit 16{flag}\n"
    )
    assert sum(node.op.name == "add" for node in graph) == joins
    assert paths(graph)[-1] == "1.2"


def test_slice() -> None:
    graph = graph_of("slice 0..in.c//2 | conv 3x3 8\n", "16x8x8")
    assert [node.shape[0] for node in graph] == [8, 8]


def test_round_to() -> None:
    # The widths of MobileNetV2 at 1.4 and at 0.35: `_make_divisible` of its authors' code.
    widths = [16, 24, 32, 64, 96, 160, 320]
    calls = "".join(f"conv 1x1 round_to({c} * {m}, 8)\n" for m in (1.4, 0.35) for c in widths)
    graph = graph_of(api.format(calls))
    assert [node.shape[0] for node in graph] == [24, 32, 48, 88, 136, 224, 448, 8, 8, 16, 24, 32, 56, 112]


def test_division_is_exact() -> None:
    codes = [d.code for d in api.check(HEADER.format("3x32x32") + "conv 3x3 8/3\n")]
    assert codes == ["E0204"]


def test_initialisations() -> None:
    graph = graph_of(
        "init conv kaiming_normal mode=fan_out\n"
        "init linear normal std=0.01\n"
        "init bn constant weight=1 bias=0\n\n"
        "conv 3x3 16 | bn\n"
        "conv 3x3 16 init=dirac | bn init=zero\n"
        "flatten | linear 10\n"
    )
    started = [node.init.name for node in graph if node.init is not None]
    assert started == ["kaiming_normal", "constant", "dirac", "zero", "normal"]


def test_contracts() -> None:
    figures = "expect params = 306\nexpect macs <= 41M\nexpect output = [classes]\nexpect depth = 2\n"
    graph_of("conv 3x3 8\nglobal_avgpool | flatten | linear classes\n\n" + figures)


def test_a_requirement_shows_its_values() -> None:
    require = 'require c % groups == 0, "c must be a multiple of {groups}, got {c}"'
    block = f"block b(c, groups = 3) {{\n    {require}\n    conv 3x3 c\n}}\n\n"
    assert graph_of(block + "b 9\n").output_shape == (9, 32, 32)
    (fault,) = api.check(HEADER.format("3x32x32") + block + "b 8\n")
    assert (fault.code, fault.message) == ("E0402", "c must be a multiple of 3, got 8")


def test_an_output_of_one_axis_may_be_expected_as_a_number() -> None:
    assert graph_of("flatten | linear classes\n\nexpect output = 10\n").output_shape == (10,)


def test_a_labeled_branch_may_be_absent() -> None:
    (error,) = api.check(HEADER.format("3x32x32") + "add {\n    in\n    a: nothing\n}\nadd {\n    in\n    @a\n}\n")
    assert (error.code, error.line) == ("E0208", 11)


def test_an_unknown_label_lists_those_in_scope() -> None:
    (error,) = api.check(HEADER.format("3x32x32") + "left: relu\nright: bn\nadd {\n    in\n    @shortcut\n}\n")
    assert error.help == "labels in scope: `left`, `right`"
