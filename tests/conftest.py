"""Options and profiles of the test run."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("quick", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accept", action="store_true", help="rewrite the expected texts of the cases, then fail once")


@pytest.fixture
def accept(request: pytest.FixtureRequest) -> bool:
    """Whether expected texts are to be rewritten."""
    return bool(request.config.getoption("--accept"))


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measurements of the machine are not those of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNNSPEC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# --- runs of small networks ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small wait longer for a second thread than it helps."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def said() -> io.StringIO:
    """What a run prints."""
    return io.StringIO()


@pytest.fixture
def run(tmp_path: Path, said: io.StringIO) -> Callable[..., Any]:
    """Trains a network into a folder of the test's own, without pictures."""
    from rich.console import Console

    from cnnspec.training import TrainOptions, train

    def run(graph: Any, **options: Any) -> Any:
        given = {"pictures": False, "console": Console(file=said, width=200), **options}
        return train(graph, TrainOptions(out=tmp_path / "runs", data_dir=tmp_path / "data", offline=True, **given))

    return run
