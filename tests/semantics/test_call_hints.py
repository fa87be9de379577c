"""Help that proposes a call in place of one in the style of another library."""

from __future__ import annotations

import re

import pytest

from cnnspec import check
from cnnspec.diagnostics import Diagnostic
from cnnspec.ops import FOREIGN_NAMES, KERNEL_FIRST, OPS, translation
from cnnspec.ops.examples import example_call
from cnnspec.ops.inits import INITS, allowed_inits

MODULES = [name for name, own in FOREIGN_NAMES.items() if own in KERNEL_FIRST]

WITH_INIT = [name for name, op in OPS.items() if "init" in op.parameters and op.parameters["init"].type.kind == "init"]


def only_error(text: str) -> Diagnostic:
    (error,) = (d for d in check(f"input 3x64x64\n{text}\n") if d.severity == "error")
    return error


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("positional", ["16 5", "16 5 2", "3 16 5", "3 16 5 2 4"])
@pytest.mark.parametrize("repeat", ["", "x2"])
@pytest.mark.parametrize("keyword", ["", "groups=1", "dilation=7", "foo=8"])
def test_a_proposed_call_keeps_the_arguments_or_names_those_it_drops(
    module: str, positional: str, repeat: str, keyword: str
) -> None:
    error = only_error(" ".join(filter(None, (module, repeat, positional, keyword))))
    assert error.code == "E0201"
    help = error.help or ""
    values = set(re.findall(r"\d+", f"{positional} {keyword.partition('=')[2]}"))
    values -= {"1"}  # equal to the default
    if positional.startswith("3 ") or (module in ("Conv2d", "ConvTranspose2d") and len(positional.split()) > 2):
        values -= {positional.split()[0]}  # the number of input channels
    assert values <= set(re.findall(r"\d+", help)), help
    assert (repeat or "x") in help
    assert not keyword.startswith("foo") or re.search("`foo=8` ha(s|ve) no equivalent", help)
    for fix in error.fixes:
        text = fix.apply(error.span.source.text) if error.span else ""
        assert not {d.code for d in check(text)} & {"E0201", "E0205", "E0206"}


def test_a_translation_names_every_argument_that_it_drops() -> None:
    for module in MODULES:
        found = translation(module, ["16", "3", "strange=4", "odd=5", "c=9", "filters=8"])
        assert found is not None
        assert {"strange=4", "odd=5", "c=9", "filters=8"} <= set(found.dropped), module


@pytest.mark.parametrize("callee", WITH_INIT)
@pytest.mark.parametrize("word", ["foo", "dirac", "kaiming_normal"])
def test_the_list_of_initializations_is_complete(callee: str, word: str) -> None:
    if word in allowed_inits(callee):
        return
    call = {"conv": "conv 3x3 8", "conv_transpose": "conv_transpose 3x3 8", "linear": "flatten | linear 8"}.get(callee)
    help = only_error(f"{call or f'{callee} groups=1' if callee == 'gn' else call or callee} init={word}").help or ""
    listed = re.findall(r"`(\w+)(?:\(([\w, ]*)\))?`", help)
    assert [name for name, _ in listed] == list(allowed_inits(callee))
    assert all(tuple(filter(None, required.split(", "))) == INITS[name].required for name, required in listed)


UNAVAILABLE = (
    "glu pixel_unshuffle channel_max log_softmax maxunpool unflatten swiglu rrelu minpool attention MultiheadAttention"
    " lstm Conv3d max_pool1d roi_align reshape nms spatial_attention channel_attention DropBlock SpaceToDepth"
).split()


@pytest.mark.parametrize("word", [word for word in UNAVAILABLE if word not in OPS])
@pytest.mark.parametrize("place", ["conv 3x3 16 | {}", "bottleneck 16 act={}"])
def test_an_operator_of_another_library_is_not_a_misspelling(word: str, place: str) -> None:
    assert "did you mean" not in (only_error(place.format(word)).help or "")


def test_no_module_of_torch_is_a_misspelling() -> None:
    """A module of torch has the name of its operator here, in other letters, or none."""
    torch = pytest.importorskip("torch")
    modules = [
        name
        for name, kind in vars(torch.nn).items()
        if isinstance(kind, type) and issubclass(kind, torch.nn.Module) and name not in FOREIGN_NAMES
    ]
    assert len(modules) > 100
    translations: set[str] = set()
    for name in modules:
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        for word in {name, snake} - {*OPS}:
            help = only_error(f"conv 3x3 16 | {word} 1").help or ""
            assert not help.startswith("did you mean"), (word, help)
            translations |= {*re.findall(r"^write `(\w+)", help)}
    assert translations >= {"adaptive_maxpool", "channel_shuffle", "hardtanh", "softmax"}


@pytest.mark.parametrize(
    ("word", "operator"),
    [
        *(("convv", "conv"), ("sigmod", "sigmoid"), ("maxpol", "maxpool"), ("pixel_shufle", "pixel_shuffle")),
        *(("drop", "dropout"), ("global_avg_pol", "global_avgpool"), ("leakyrelu", "leaky_relu"), ("Tanh", "tanh")),
    ],
)
def test_a_slip_in_an_operator_is_found(word: str, operator: str) -> None:
    help = only_error(f"conv 3x3 16 | {word} 1").help or ""
    assert f"`{operator}`" in help


FLAGS = [name for name, op in OPS.items() if any(p.type.kind == "bool" for p in op.parameters.values())]


@pytest.mark.parametrize("callee", FLAGS)
@pytest.mark.parametrize("word", ["ws", "standardized", "frozen", "transposed"])
def test_an_unknown_flag_is_called_a_flag(callee: str, word: str) -> None:
    required = [p for p in OPS[callee].parameters.values() if p.required or (callee, p.name) == ("conv", "c")]
    found = [d for d in check(f"input 16x32x32\n{example_call(callee, required)} {word}\n") if d.code == "E0202"]
    assert [d.message for d in found] == [f"`{callee}` has no flag `{word}`"]


KERAS = {
    "Conv2D(16, 3)": "conv 3x3 16 pad=0 bias",
    "Conv2D(16, (3, 5), padding='same', use_bias=False)": "conv 3x5 16",
    'Conv2D(filters=16, kernel_size=[3, 3], strides=(2, 2), padding="same")': "conv 3x3 16 pad=tf_same bias stride=2x2",
    "Conv2D(16, 4, padding='same')": "conv 4x4 16 pad=tf_same bias",
    "Conv2D(16, 1, activation='swish')": "conv 1x1 16 pad=0 bias | silu",
    "Conv2D(16, 3, dilation_rate=2, groups=4)": "conv 3x3 16 pad=0 bias dilation=2 groups=4",
    "DepthwiseConv2D(5, strides=2, padding='same', use_bias=False)": "conv 5x5 pad=tf_same stride=2 depthwise",
    "MaxPooling2D()": "maxpool",
    "MaxPool2D((3, 3), strides=2)": "maxpool 3x3 stride=2",
    "AveragePooling2D(pool_size=2, padding='valid')": "avgpool 2x2",
    "GlobalAveragePooling2D()": "global_avgpool | flatten",
    "Dropout(rate=0.3)": "dropout 0.3",
    "Dense(10, use_bias=False)": "linear 10 bias=false",
    "Dense(units=10, activation='linear')": "linear 10",
    "Flatten()": "flatten",
    "BatchNormalization()": "bn",
    "Activation('relu')": "relu",
    "SpatialDropout2D(rate=0.2)": "dropout2d 0.2",
    "Conv2D(16, 3, activation=tf.nn.relu)": "conv 3x3 16 pad=0 bias | relu",
}


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("padding=1, padding_mode='reflect'", "pad 1 mode=reflect | conv 3x3 16 pad=0 bias"),
        ("padding=(1, 2), padding_mode='circular', bias=False", "pad 1x2 mode=circular | conv 3x3 16 pad=0"),
        ("padding_mode='replicate'", "conv 3x3 16 pad=0 bias"),
        ("padding=1, padding_mode='zeros'", "conv 3x3 16 pad=1 bias"),
    ],
)
def test_the_padding_mode_of_torch_is_a_layer_before(arguments: str, written: str) -> None:
    assert only_error(f"conv 3x3 16\nConv2d(16, 16, 3, {arguments})").help == f"write `{written}`"
    assert [d for d in check(f"input 3x8x8\nconv 3x3 16\n{written}\n") if d.severity == "error"] == []


def test_the_padding_mode_of_same_padding_is_named() -> None:
    error = only_error("conv 3x3 16\nConv2d(16, 16, 3, padding='same', padding_mode='reflect')")
    assert error.help == 'write `conv 3x3 16 bias`; `padding_mode="reflect"` has no equivalent'


@pytest.mark.parametrize(("call", "written"), KERAS.items())
@pytest.mark.parametrize("line", ["{}", "x = {}(x)", "model.add({})", "tf.keras.layers.{},", "x = layers.{}(x)"])
def test_a_layer_of_keras_is_translated(call: str, written: str, line: str) -> None:
    error = only_error(f"conv 3x3 16\n{line.format(call)}")
    assert error.help == f"write `{written}`"
    if written != "maxpool" and not call.startswith("Dense") and error.span:
        (fix,) = error.fixes
        assert fix.apply(error.span.source.text).endswith(f"\n{written}\n")


@pytest.mark.parametrize("group", ["{ conv 3x3 3 | bn }", "{\n    conv 3x3 3\n    relu\n}", "{ conv 3x3 3; relu }"])
@pytest.mark.parametrize("word", ["residual", "skip", "shortcut", "res_block", "skip_connection", "Residual"])
def test_a_residual_group_becomes_a_sum(word: str, group: str) -> None:
    error = only_error(f"{word} {group}")
    assert "add { in; " in (error.help or "")
    fixed = [check(fix.apply(error.span.source.text)) for fix in error.fixes if error.span]
    assert fixed == [[]]
