"""Networks with several images: section "Several images" of the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnnspec import CnnspecError, check, draw, format, loads
from cnnspec.analysis.diff import compare
from cnnspec.analysis.summary import summarize
from cnnspec.api import resize
from cnnspec.cli.dump import graph_text
from cnnspec.ir.model import Model

STEREO = """
network stereo
input left 3x24x32
input right 1x24x32

block fuse(c, side: tensor) {
    add { conv: conv 3x3 c bias; @side }
}
features: conv 3x3 8 bias | relu
side: @right | conv 1x1 8 bias
fused: fuse 8 @side
down: maxpool 2
out: concat { @down | upsample like=@left; @left; @features }
head conv 3x3 2 bias
"""


def test_images_are_read_by_their_names() -> None:
    graph = loads(STEREO)
    assert graph.input_text == "left [N, 3, 24, 32], right [N, 1, 24, 32]"
    assert [node.shape for node in graph.nodes[:2]] == [(3, 24, 32), (1, 24, 32)]
    by_path = {node.path: node for node in graph.nodes}
    assert by_path["features.0"].inputs == (0,)
    assert by_path["side.0"].inputs == (1,)
    assert sorted(key for node in graph.nodes for key in node.parameters) == sorted(
        f"{path}.{key}" for path in ("features.0", "side.0", "fused.conv", "head") for key in ("weight", "bias")
    )


def test_the_sizes_are_one_set() -> None:
    graph = loads(STEREO)
    assert graph.sizes.words() == "any HxW of at least 2x2"
    assert graph.at(17, 9).output_shape == (2, 17, 9)
    with pytest.raises(CnnspecError) as refused:
        graph.at(1, 9)
    assert refused.value.diagnostics[0].code == "E0313"


@pytest.mark.parametrize("size", ["16x20", "3x16x20", (16, 20), [3, 16, 20]])
def test_another_size_is_one_of_all_images(size: str | tuple[int, ...]) -> None:
    same = loads(STEREO.replace("right 1x", "right 3x"))
    assert [*resize(same, size).images.values()] == [(3, 16, 20)] * 2
    if size in ("16x20", (16, 20)):
        assert resize(loads(STEREO), size).input_text == "left [N, 3, 16, 20], right [N, 1, 16, 20]"
        return
    with pytest.raises(CnnspecError) as refused:
        resize(loads(STEREO), size)
    assert refused.value.diagnostics[0].message == "`stereo` expects images with 3 and 1 channels, got 3"


def test_a_difference_of_the_images_is_stated_once() -> None:
    other = compare(loads(STEREO), loads(STEREO.replace("right 1x24x32", "right 3x24x32")))
    assert [change.path for change in other.changes if "input" in change.path] == ["input right"]
    swapped = STEREO.replace("input left 3x24x32\ninput right 1x24x32", "input right 1x24x32\ninput left 3x24x32")
    swapped = swapped.replace("features:", "features: @left |")
    assert [change.path for change in compare(loads(STEREO), loads(swapped)).changes] == ["input"]


def test_one_image_can_have_a_name() -> None:
    text = "input image 3x8x8\nconv 3x3 3\nadd {{ in; {} }}\n"
    named, plain = loads(text.format("@image")), loads("input 3x8x8\nx: in\n" + text[18:].format("@x"))
    assert [node.inputs for node in named.nodes] == [node.inputs for node in plain.nodes] == [(-1,), (0, -1)]
    assert named.images == {}


def test_it_is_formatted_and_stored() -> None:
    assert format("input   left   3x4x4 # L\ninput input2 1x4x4\n@input2\n").splitlines()[:2] == [
        "input left 3x4x4  # L",
        "input input2 1x4x4",
    ]
    model = loads(STEREO).model
    assert Model.model_validate_json(model.model_dump_json()) == model


def test_an_extended_network_keeps_or_replaces_its_images(tmp_path: Path) -> None:
    from cnnspec import load

    (tmp_path / "base.cnn").write_text(STEREO)
    (tmp_path / "same.cnn").write_text("extends base\n")
    (tmp_path / "other.cnn").write_text("extends base\ninput left 1x48x48\ninput right 1x48x48\n")
    (tmp_path / "one.cnn").write_text("extends base\ninput left 1x48x48\n")
    assert load(tmp_path / "same.cnn").input_text == loads(STEREO).input_text
    assert load(tmp_path / "other.cnn").input_text == "left [N, 1, 48, 48], right [N, 1, 48, 48]"
    with pytest.raises(CnnspecError) as refused:
        load(tmp_path / "one.cnn")
    assert {found.code for found in refused.value.diagnostics} == {"E0208"}


def test_every_stage_shows_the_images() -> None:
    graph = loads(STEREO)
    assert graph.to_json()["images"] == {"left": [3, 24, 32], "right": [1, 24, 32]}
    assert "images" not in loads("input image 3x8x8\nconv 3x3 3\n").to_json()
    assert graph.arguments == ("left", "right")
    assert graph.at(48, 32).images == {"left": (3, 48, 32), "right": (1, 48, 32)}
    table = summarize(graph)
    assert table.to_json()["images"] == {"left": [3, 24, 32], "right": [1, 24, 32]}
    assert table.total.activations == sum(row.activations for row in table.rows if row.level == 1)
    shown = graph_text(graph).splitlines()
    assert shown[0] == "stereo: left [N, 3, 24, 32], right [N, 1, 24, 32] -> [N, 2, 24, 32]"
    assert [line[-13:] for line in shown[1:3]] == [" (image left)", "(image right)"]
    drawn = draw(graph, "mmd").decode()
    assert drawn.count(":::input") == 3  # the images, and the tensor parameter of the block
    assert "slice" not in drawn


@pytest.mark.parametrize(
    "line", ["", "train { normalize imagenet }", "train { data cifar10; augment random_crop 9; epochs 1 }"]
)
def test_a_recipe_is_pointless(line: str) -> None:
    text = "input a 3x8x8\ninput b 3x8x8\nclasses 10\nadd { in; @b } | flatten | linear classes\n"
    found = check(text + line)
    assert [(each.code, each.line) for each in found] == ([("W0113", 1)] if line else [])


PLACES = [
    "{}",
    "x: {}",
    "conv 3x3 3 | {}",
    "{{ {} }}",
    "add {{ in; {} }}",
    "repeat 2 {{ {}; relu }}",
    "input first 3x8x8; {}",
]
INPUTS = [
    "left 3x8x8",
    "left: 3x8x8",
    "left=3x8x8",
    "3x8x8 left",
    "left, right 3x8x8",
    "3x8x8, 3x8x8",
    "left 8x8",
    "left",
]


@pytest.mark.parametrize("place", PLACES)
def test_every_notation_is_explained(place: str) -> None:
    for notation in INPUTS:
        text = place.format(f"input {notation}") + "\nconv 3x3 4\n"
        found = check(text)
        assert found or place == "{}"
        assert {each.code for each in found} <= {"E0101", "E0109", "E0201", "E0215", "E0311"}, text


def test_a_refused_size_has_no_channels_of_all_images() -> None:
    with pytest.raises(CnnspecError, match="does not accept images of 1x9: ") as refused:
        loads(STEREO).at(1, 9)
    assert (refused.value.diagnostics[0].help or "").startswith("use 2x9, ")
