"""A pytest plugin: `pytest --cnnspec` collects `.cnn` files, one test per file.

A test checks the file and its `expect` statements. If torch is installed, it also compares the network with torch at
random image sizes. Nothing else of cnnspec is imported before the first test runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cnnspec.compiler import Compilation


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cnnspec")
    group.addoption(
        "--cnnspec", action="store_true", help="collect .cnn files: check each one, and compare it with torch"
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".cnn" and parent.config.getoption("--cnnspec"):
        return SpecFile.from_parent(parent, path=file_path)  # pyright: ignore[reportUnknownMemberType]
    return None


class SpecFile(pytest.File):
    """A `.cnn` file."""

    def collect(self) -> Iterator[pytest.Item]:
        yield SpecItem.from_parent(self, name="check")  # pyright: ignore[reportUnknownMemberType]


class SpecError(Exception):
    """The errors of a spec, rendered as on the command line."""


class SpecItem(pytest.Item):
    """The test of one spec. A file that only defines blocks is checked, but not compared with torch."""

    def runtest(self) -> None:
        from cnnspec.compiler import compile_file

        done = compile_file(self.path)
        if done.reporter.failed:
            raise SpecError(_render_all(done))
        if done.graph is None:
            return
        try:
            from cnnspec.testing import assert_sound
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            return
        assert_sound(done.graph)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from cnnspec.diagnostics import CnnspecError

        if isinstance(excinfo.value, (SpecError, CnnspecError, AssertionError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.path.name


def _render_all(done: Compilation) -> str:
    from cnnspec.diagnostics import render

    return "\n\n".join(render(diagnostic) for diagnostic in done.diagnostics)
