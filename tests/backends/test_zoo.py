"""The page of shipped networks: it is complete and current, and torchvision has no convolutional classifier besides."""

from __future__ import annotations

import re

import pytest
import torchvision
from harness import zoo

from cnnspec.cli.dump import families, family_of
from cnnspec.semantics.loader import shipped_specs

PAGE = zoo.PAGE.read_text("utf-8")
ROWS = {row.split("`")[1]: row for row in re.findall(r"^\| `.*\|$", PAGE, re.M)}


def test_every_network_has_a_row_in_its_family() -> None:
    assert list(ROWS) == [name for names in families(shipped_specs()).values() for name in names]
    assert re.findall(r"^## (.*)$", PAGE, re.M) == list(families(shipped_specs()))
    assert PAGE.startswith(zoo.HEAD)


@pytest.mark.parametrize("family", families(shipped_specs()))
def test_figures_of_the_specs_are_current(family: str) -> None:
    """Run `python tests/harness/zoo.py` to write the page again."""
    for name in families(shipped_specs())[family]:
        cells = [cell.strip() for cell in ROWS[name].strip("|").split("|")]
        assert (cells[2], cells[3], cells[5], cells[6]) == zoo.cells(name), name
        reference = zoo.references().get(name)
        assert (cells[8] != "") == (reference is not None), name
        if reference is not None:
            assert cells[8] == zoo.equality(reference), name


@pytest.mark.parametrize(
    "name",
    [
        param
        if param in ("alexnet", "vgg16", "convmixer_768_32", "resnet18")
        else pytest.param(param, marks=pytest.mark.slow)
        for param in ROWS
    ],
)
def test_figures_of_the_references_are_current(name: str) -> None:
    assert zoo.row(name) == ROWS[name]


def test_published_counts_are_those_of_the_specs() -> None:
    """A published count of torchvision is rounded to hundredths of a billion."""
    compared = 0
    for name, row in ROWS.items():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if cells[4] and zoo.references()[name].library == "torchvision":
            compared += 1
            assert float(cells[4]) == pytest.approx(float(cells[3]), abs=0.0101), name
    assert compared > 60


def test_every_convolutional_classifier_of_torchvision_is_shipped() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    attention = {name for name in names if name.startswith(("maxvit", "swin", "vit"))}
    assert {*names} - attention <= {*zoo.references()}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *(("resnet18", "resnet"), ("wide_resnet50_2", "resnet"), ("efficientnet_v2_s", "efficientnet")),
        *(("ese_vovnet19b_dw", "vovnet"), ("deeplabv3_resnet50", "deeplab"), ("res2net50_26w_4s", "res2net")),
    ],
)
def test_families(name: str, family: str) -> None:
    assert family_of(name) == family
