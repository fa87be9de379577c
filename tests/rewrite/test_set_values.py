"""Values written into the text of a spec: the result equals the spec with `--set`, and the rest of the text is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnspec import CnnspecError, format, loads
from cnnspec.compiler import compile_file, compile_source
from cnnspec.diagnostics import Source
from cnnspec.recipe import ORIGINS, Recipe, Setting
from cnnspec.rewrite.set_values import apply_values, same, setting_text

SPEC = """# the head of the file
network tiny

input 3x32x32  # small
classes 10
param c = 8  # width
param act = relu
param wide = false
let double = 2 * c
stem conv 3x3 c | bn | act
stage conv 3x3 (if wide then 2*double else double) stride=2 | bn | act
head global_avgpool | flatten | linear classes
expect params = 1586  # by hand
expect params < 1M
expect macs <= 1000 * 1000 * c
train {
    # the recipe
    optimizer sgd 0.1 nesterov momentum=0.9  # as ever
    schedule  multistep at=[5, 10]
    augment   hflip | random_crop pad=2
    epochs    20
    minutes   30
}
"""


GONE = ["- expect params = 1586 # by hand", "- expect params < 1M", "+ # by hand"]
"""Numbers of `expect` that belong to other parameters."""
OPTIMIZER = "- optimizer sgd 0.1 nesterov momentum=0.9 # as ever"


def changed(values: dict[str, str]) -> list[str]:
    """Return a diff of the lines that change with these values."""
    before, after = (
        [" ".join(line.split()) for line in text.splitlines()]
        for text in (SPEC, apply_values(SPEC, "tiny.cnn", values))
    )
    return [f"- {line}" for line in before if line not in after] + [f"+ {line}" for line in after if line not in before]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, []),
        ({"c": "8", "lr": "0.1", "epochs": "20"}, []),
        ({"classes": "100"}, ["- classes 10", "+ classes 100", *GONE]),
        ({"act": "gelu"}, ["- param act = relu", "+ param act = gelu", *GONE]),
        ({"wide": "true"}, ["- param wide = false", "+ param wide = true", *GONE]),
        ({"c": "2 + 2"}, ["- param c = 8 # width", "+ param c = (2 + 2) # width", *GONE]),
        ({"lr": "0.05"}, [OPTIMIZER, "+ optimizer sgd lr=0.05 nesterov momentum=0.9 # as ever"]),
        ({"optimizer.nesterov": "false"}, [OPTIMIZER, "+ optimizer sgd 0.1 nesterov=false momentum=0.9 # as ever"]),
        (
            {"weight_decay": "5e-4"},
            [OPTIMIZER, "+ optimizer sgd 0.1 nesterov momentum=0.9 weight_decay=0.0005 # as ever"],
        ),
        ({"optimizer": "adamw", "lr": "0.003"}, [OPTIMIZER, "+ optimizer adamw lr=0.003 # as ever"]),
        (
            {"schedule": "onecycle", "warmup": "0.2"},
            ["- schedule multistep at=[5, 10]", "+ schedule onecycle warmup=0.2"],
        ),
        ({"at": "[7]"}, ["- schedule multistep at=[5, 10]", "+ schedule multistep at=[7]"]),
        ({"random_crop.pad": "4"}, ["- augment hflip | random_crop pad=2", "+ augment hflip | random_crop pad=4x4"]),
        ({"hflip.p": "0.25"}, ["- augment hflip | random_crop pad=2", "+ augment hflip p=0.25 | random_crop pad=2"]),
        ({"minutes": "10", "decay": "weights"}, ["- minutes 30", "+ minutes 10", "+ decay weights"]),
        ({"data": "mnist", "data.val": "100"}, ["+ data mnist val=100"]),
        (
            {"epochs": "40"},
            ["- schedule multistep at=[5, 10]", "- epochs 20", "+ schedule multistep at=[10, 20]", "+ epochs 40"],
        ),
    ],
)  # fmt: skip
def test_a_value_changes_where_it_is_stated(values: dict[str, str], expected: list[str]):
    assert sorted(changed(values)) == sorted(expected)
    comments = [line.partition("#")[2] for line in SPEC.splitlines() if "#" in line]
    assert [
        line.partition("#")[2] for line in apply_values(SPEC, "tiny.cnn", values).splitlines() if "#" in line
    ] == comments


def test_a_spec_without_a_train_section_gets_one():
    text = "input 3x32x32\nparam c = 4\nconv 3x3 c\n"
    assert apply_values(text, "net.cnn", {"lr": "0.05", "batch": "64", "c": "5"}) == (
        "network net\ninput 3x32x32\nparam c = 5\nconv 3x3 c\n\n"
        "train {\n    optimizer adamw lr=0.05\n    batch     64\n}\n"
    )


def test_inherited_parameters_change_in_the_arguments_of_extends(tmp_path: Path):
    (tmp_path / "base.cnn").write_text(SPEC)
    path = tmp_path / "net.cnn"
    text = 'extends "base.cnn" act=gelu  # the base\nnetwork net\nexpect params = 1586\n'
    path.write_text(text)
    written = apply_values(text, "net.cnn", {"c": "4", "act": "silu", "lr": "0.05"}, path)
    head, _, section = written.partition("\ntrain {\n")
    assert head == 'extends "base.cnn" act=silu c=4  # the base\nnetwork net\n'
    # A section of its own takes the place of the base's, so it says everything that the base says.
    assert section.split() == (
        "augment hflip | random_crop pad=2x2 optimizer sgd lr=0.05 momentum=0.9 nesterov"
        " schedule multistep at=[5, 10] epochs 20 minutes 30 }"
    ).split()  # fmt: skip
    # The arguments of `extends` that are named after a parameter of the file follow it.
    text = 'param c = 8\nextends "base.cnn" c=c\n'
    assert apply_values(text, "net.cnn", {"c": "4"}, path) == 'network net\nparam c = 4\nextends "base.cnn" c=c\n'


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"epochs": "30", "at": "[5, 9]"}, "E0518"),  # the ninth of 20 epochs is no whole one of 30
        ({"width": "3"}, "E0217"),
        ({"c": "wide"}, "E0204"),
        ({"c": "0"}, "E0215"),
        ({"lr": "-1"}, "E0215"),
        ({"c": '1"; let x = "'}, "E0204"),
    ],
)
def test_invalid_values_are_rejected(values: dict[str, str], code: str):
    with pytest.raises(CnnspecError) as error:
        apply_values(SPEC, "tiny.cnn", values)
    assert error.value.diagnostics[0].code == code


def test_an_invalid_spec_is_rejected():
    for text in ("", "input 3x32x32\nconv 3x\n", "block b(c) { conv 1x1 c }\n"):
        with pytest.raises(CnnspecError):
            apply_values(text, "net.cnn", {})


@settings(max_examples=40)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "c": st.integers(1, 64).map(str),
            "classes": st.integers(2, 200).map(str),
            "act": st.sampled_from(["gelu", "silu", "relu", "tanh"]),
            "wide": st.sampled_from(["true", "false"]),
            "lr": st.floats(1e-6, 10, allow_subnormal=False).map(repr),
            "momentum": st.floats(0.01, 1, allow_subnormal=False).map(repr),
            "nesterov": st.sampled_from(["true", "false"]),
            "batch": st.integers(1, 4096).map(str),
            "label_smoothing": st.sampled_from(["0.1", "0"]),
            "epochs": st.sampled_from(["20", "40", "60"]),
            "gamma": st.floats(1e-30, 1).map(repr),
            "random_crop.pad": st.sampled_from(["1", "2", "3x5"]),
            "precision": st.sampled_from(["bf16", "fp32"]),
            "compile": st.sampled_from(["default", "cuda_graphs"]),
        },
    ),
    optimizer=st.sampled_from([None, "sgd", "adamw", "rmsprop"]),
)
def test_the_written_spec_equals_the_spec_with_these_values(values: dict[str, str], optimizer: str | None):
    if optimizer is not None:
        values = {**values, "optimizer": optimizer}
        values.pop("nesterov", None)
        if optimizer == "adamw":
            values.pop("momentum", None)
    written = apply_values(SPEC, "tiny.cnn", values)
    assert format(written) == written
    found, wanted = loads(written, "tiny.cnn"), loads(SPEC, "tiny.cnn", **values)
    assert found.nodes == wanted.nodes
    rest = {*ORIGINS, "planned", "schedule"}
    assert found.recipe.model_dump(exclude=rest) == wanted.recipe.model_dump(exclude=rest)
    assert apply_values(written, "tiny.cnn", values) == written
    assert not [d for d in compile_source(Source("tiny.cnn", written)).diagnostics if d.severity == "error"]


def test_shipped_specs_can_be_rewritten():
    for name, values in (("resnet20", {"n": "2", "lr": "0.05"}), ("densenet_cifar", {"batch": "64"})):
        compiled = compile_file(name)
        assert same(
            loads(apply_values(compiled.source.text, f"{name}.cnn", values)), compile_file(name, values).require_graph()
        )


def test_settings_are_written_as_a_spec_writes_them():
    recipe = Recipe(optimizer=Setting(name="muon", args={"lr": 0.02, "nesterov": False, "momentum": 0.95}))
    assert setting_text(recipe.optimizer) == "muon lr=0.02 nesterov=false"
    assert setting_text(Setting(name="folder", args={"path": "my pictures", "val": 0.1})) == 'folder path="my pictures"'
    assert setting_text(0.1234567890123) == "0.1234567890123"
    assert setting_text(True) == "true"
