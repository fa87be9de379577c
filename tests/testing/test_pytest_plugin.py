"""Test `pytest --cnnspec` by running pytest."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

GOOD = "network t\ninput 3x8x8\nconv 3x3 8 | bn | relu\nexpect params = 232\n"


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    installed = any(point.name == "cnnspec" for point in entry_points(group="pytest11"))
    plugin = () if installed else ("-p", "cnnspec.pytest_plugin")  # a checkout that is not installed
    return pytester.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", *args)


def test_specs_are_collected_when_asked_for(pytester: pytest.Pytester) -> None:
    pytester.makefile(".cnn", good=GOOD, blocks="block b() { relu }\n")
    run(pytester, "--cnnspec").assert_outcomes(passed=2)
    run(pytester).assert_outcomes()


def test_errors_are_shown_as_on_the_command_line(pytester: pytest.Pytester) -> None:
    pytester.makefile(".cnn", bad=GOOD.replace("232", "233"), worse="input 3x8x8\nlinear 3\n")
    result = run(pytester, "--cnnspec")
    result.assert_outcomes(failed=2)
    shown = result.stdout.str()
    assert "error[E0401]: expected `params` = 233, got 232" in shown
    assert "error[E0307]" in shown
    assert "Traceback" not in shown
    assert "pytest_plugin.py" not in shown


def test_the_plugin_imports_nothing_without_its_option() -> None:
    heavy = {"torch", "hypothesis", "lark", "pydantic"}
    code = f"import sys; import cnnspec.pytest_plugin; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_example_of_a_test_module_runs(pytester: pytest.Pytester) -> None:
    example = Path(__file__).parents[2] / "examples" / "02_test_my_network.py"
    pytester.makepyfile(test_my_network=example.read_text("utf-8"))
    run(pytester).assert_outcomes(passed=2)
