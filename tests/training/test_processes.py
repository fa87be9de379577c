"""Test what several processes exchange, and that they compute what a single one does."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.processes import run_in_processes
from harness.runs import tiny
from torch import nn

from cnnspec import CnnspecError, loads
from cnnspec.backends.torch.module import to_module
from cnnspec.recipe import Folder, Setting
from cnnspec.training.data.datasets import Pixels, load_data
from cnnspec.training.data.preprocessing import Preprocessing
from cnnspec.training.loop import evaluate
from cnnspec.training.loop.evaluate import Score, score
from cnnspec.training.loop.processes import Processes

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = tiny(shape="1x12x12", layers="stem conv 3x3 8 | bn | relu")


def values(found: Score) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in fields(found)}


def assert_same(one: Score, other: Score) -> None:
    for name, value in values(one).items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(value, getattr(other, name)), name
    assert one.metrics() == other.metrics()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_divide_a_split_and_each_returns_the_score_of_one(count: int, monkeypatch: pytest.MonkeyPatch):
    """Also with fewer batches than processes, and with an incomplete last batch."""
    monkeypatch.setattr(evaluate, "BATCH", 8)
    torch.manual_seed(0)
    network, device = to_module(loads(SPEC)), torch.device("cpu")
    scale = Preprocessing((12, 12), (0.5,), (0.2,))
    pixels = torch.randint(0, 256, (75, 1, 12, 12), dtype=torch.uint8)
    labels = torch.randint(0, 10, (75,))
    sizes = (1, 7, 8, 9, 16, 24, 25, 64, 75)
    splits = [Pixels(pixels[:size], labels[:size]) for size in sizes]

    def job(rank: int) -> tuple[list[Score], int]:
        polls: list[int] = []
        found = [
            score(network, images, scale, device, lambda: polls.append(1), processes=Processes()) for images in splits
        ]
        return found, len(polls)

    results = run_in_processes(count, job, connect=True)
    alone = [score(network, images, scale, device) for images in splits]
    assert len({polls for _, polls in results}) == 1
    for found, _ in results:
        for one, other in zip(alone, found, strict=True):
            assert_same(one, other)


def test_images_in_files_are_divided_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from PIL import Image

    monkeypatch.setattr(evaluate, "BATCH", 4)
    monkeypatch.setattr(evaluate, "default_workers", lambda processes: 0)
    for number in range(33):
        folder = tmp_path / ("train", "test")[number // 10 % 2] / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        for color in (number, 7 * number):
            Image.new("L", (12 + number, 12), color).save(folder / f"{number}-{color}.png")
    graph = loads(SPEC)
    data = load_data(graph, Setting.of(Folder(path=str(tmp_path))), tmp_path)
    assert data.test is not None
    network, scale = to_module(graph), Preprocessing((12, 12), (0.5,), (0.2,))
    images = data.test

    def job(rank: int) -> Score:
        return score(network, images, scale, torch.device("cpu"), processes=Processes())

    one = score(network, images, scale, torch.device("cpu"))
    for other in run_in_processes(3, job, connect=True):
        assert_same(one, other)


def test_an_output_that_is_not_finite_ends_every_process(monkeypatch: pytest.MonkeyPatch):
    """The images of one process only give NaN."""
    monkeypatch.setattr(evaluate, "BATCH", 4)

    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (images.amax((1, 2, 3)) - 1).log().sqrt()[:, None].expand(-1, 3)

    pixels = torch.zeros(16, 1, 1, 1, dtype=torch.uint8)
    pixels[:8] = 255
    images = Pixels(pixels, torch.zeros(16, dtype=torch.long))
    scale = Preprocessing((1, 1), (0.0,), (0.1,))

    def job(rank: int) -> None:
        score(Broken(), images, scale, torch.device("cpu"), processes=Processes())

    errors = run_in_processes(2, job, connect=True)
    assert [type(error) for error in errors] == [CnnspecError] * 2
    assert {error.diagnostics[0].code for error in errors} == {"E0509"}


@pytest.mark.parametrize("count", [2, 4])
def test_all_processes_obey_a_vote_after_the_same_step(count: int):
    """Each process sets its flags at its own steps, and is late at others."""
    steps, rng = 40, random.Random(count)
    flags = [[(rng.random() < 0.1, rng.random() < 0.1) for _ in range(count)] for _ in range(steps)]

    def job(rank: int) -> list[list[bool]]:
        processes, seen = Processes(), []
        for step in range(steps):
            if (step + rank) % 7 == 0:
                time.sleep(0.005)
            seen.append(processes.vote(*flags[step][rank]))
        assert processes.sum(torch.tensor([rank])).item() == sum(range(count))
        return seen

    expected = [[False, False], *([any(column) for column in zip(*step, strict=True)] for step in flags[:-1])]
    assert run_in_processes(count, job, connect=True) == [expected] * count


def test_a_vote_does_not_wait_for_the_other_processes():
    has_voted = multiprocessing.get_context("fork").Event()

    def job(rank: int) -> bool:
        processes = Processes()
        processes.any(False)
        if rank == 1 and not has_voted.wait(30):  # until the other process has voted
            return False
        processes.vote(False)
        has_voted.set()
        return True

    assert run_in_processes(2, job, connect=True) == [True, True]


def test_a_killed_process_is_noticed_at_once():
    """Otherwise, the others would wait for a day."""

    def job(rank: int) -> None:
        processes = Processes()
        processes.any(False)
        if rank == 1:
            os._exit(9)
        with pytest.raises(RuntimeError):
            processes.any(False)
        raise SystemExit  # the other process cannot take part in what follows a job

    first, second = run_in_processes(2, job, connect=True)
    assert second is None
    assert isinstance(first, SystemExit)
