"""Options, profiles and fixtures of the test run."""

from __future__ import annotations

import io
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples in each run, so that a change fails only for what it changes; `make test-random` looks for others.
settings.register_profile("quick", settings.get_profile("random"), derandomize=True)
settings.load_profile("quick")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="rewrite the expected texts of the cases, then fail once")


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    """Whether to rewrite the expected texts."""
    return bool(request.config.getoption("--accept"))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use a separate cache for measurements of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNNSPEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def seeded(pytestconfig: pytest.Config) -> None:
    """Draw the same random numbers in each run, whichever tests ran before in this process."""
    if pytestconfig.getoption("--hypothesis-profile") == "random":
        return
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


# --- runs of small networks ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, because a second one slows down networks this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def output() -> io.StringIO:
    """The output of a run."""
    return io.StringIO()


@pytest.fixture
def run(tmp_path: Path, output: io.StringIO) -> Callable[..., Any]:
    """Train a network in the test's folder, without plots."""
    from rich.console import Console

    from cnnspec.training import TrainOptions, train

    def run(graph: Any, **options: Any) -> Any:
        given = {"plots": False, "offline": True, "console": Console(file=output, width=200), **options}
        return train(graph, TrainOptions(out=tmp_path / "runs", data_dir=tmp_path / "data", **given))

    return run


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read images in the process of the test."""
    monkeypatch.setattr("cnnspec.training.runs.train.default_workers", lambda processes: 0)
    monkeypatch.setattr("cnnspec.training.loop.evaluate.default_workers", lambda processes: 0)


# --- pages in a browser --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()
