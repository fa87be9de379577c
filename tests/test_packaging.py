"""The metadata of the package: dependencies and their pins, supported versions of Python."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENT = re.compile(r"(?P<name>[\w-]+)>=(?P<least>[0-9.]+)")
UNPINNED = {"torch", "torchvision"}
"""Their versions belong to one build of torch."""


def version(text: str) -> list[int]:
    return [int(number) for number in text.split(".")]


def requirements() -> list[re.Match[str]]:
    groups = [PROJECT["dependencies"], *EXTRAS.values()]
    own = [text for group in groups for text in group if not text.startswith("cnnspec[")]
    matches = [REQUIREMENT.fullmatch(text) for text in own]
    assert all(matches), "every dependency has a lower bound and nothing else: " + ", ".join(own)
    return [match for match in matches if match]


def test_every_dependency_has_a_pin_above_its_lower_bound() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {name.lower(): pinned for name, pinned in pins.items()}
    assert not UNPINNED & set(pins)
    for requirement in requirements():
        name, least = requirement["name"], requirement["least"]
        if name not in UNPINNED:
            assert name in pins, f"constraints.txt has no pin for {name}"
            assert version(pins[name]) >= version(least), name


def test_supported_versions_of_python_are_stated_once() -> None:
    listed = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.[0-9]+$", c)]
    assert PROJECT["requires-python"] == f">={listed[0]}"
    assert f"Python {', '.join(listed[:-1])} and {listed[-1]}" in (ROOT / "CONTRIBUTING.md").read_text("utf-8")
