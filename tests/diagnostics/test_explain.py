"""Every code has a page, and what the page shows is so: its first sample fails with this code, its second does not.

A sample is a spec, a script of Python, or commands; commands of training are only read, as they need data and time.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cnnspec import cli
from cnnspec.compiler import compile_file
from cnnspec.diagnostics import CnnspecError
from cnnspec.diagnostics.explain import explanation, titles
from cnnspec.lints import OFF_BY_DEFAULT
from cnnspec.semantics.loader import shipped_specs

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = (ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")
LISTED = dict(re.findall(r"^\| \[`([EW][0-9]{4})`\]\([^)]*\) \| (.*) \|$", REFERENCE, re.M))
PAGE = re.compile(
    r"# (?P<code>[EW][0-9]{4}): (?P<title>.+)\n\n(?P<why>(?:(?!#|```)[^\n]+\n)+)\n"
    r"Fails:\n\n```(?P<kind>cnn|sh|python)\n(?P<bad>.*?)```\n\nFixed:\n\n```(?P=kind)\n(?P<good>.*?)```\n",
    re.S,
)


def page(code: str) -> re.Match[str]:
    found = PAGE.fullmatch(explanation(code))
    assert found is not None, f"{code}: not of the form of a page"
    return found


def of_kind(kind: str) -> list[str]:
    return [code for code in titles() if f"```{kind}\n" in explanation(code)]


def test_every_code_has_a_page_with_its_title() -> None:
    assert {code: title.replace("|", r"\|") for code, title in titles().items()} == LISTED
    for code in titles():
        assert page(code)["code"] == code


def test_samples_are_specs_wherever_a_spec_can_show_the_fault() -> None:
    for code in titles():
        if not code.startswith("E05"):
            assert page(code)["kind"] == "cnn" or code in of_kind("sh") or code in of_kind("python")
    assert len(of_kind("cnn")) > len(titles()) / 2
    of_checks = {"E0521", "E0525"}  # the other codes of backends, data and training need a command
    assert all(page(code)["kind"] == "sh" for code in titles() if code.startswith("E05") and code not in of_checks)


@pytest.mark.parametrize("code", of_kind("cnn"))
def test_sample(code: str, tmp_path: Path) -> None:
    path = tmp_path / "net.cnn"
    path.write_text(page(code)["bad"], "utf-8")
    on = OFF_BY_DEFAULT & {code}
    assert {diagnostic.code for diagnostic in compile_file(path, lints=on).diagnostics} == {code}
    path.write_text(page(code)["good"], "utf-8")
    assert [str(diagnostic) for diagnostic in compile_file(path, lints=on).diagnostics] == []


@pytest.mark.parametrize("code", [code for code in of_kind("sh") if not code.startswith("E05")])
def test_commands(code: str, tmp_path: Path) -> None:
    def run(script: str) -> subprocess.CompletedProcess[str]:
        start = f'cnnspec() {{ PYTHONPATH="{ROOT}" "{sys.executable}" -m cnnspec "$@"; }}\n'
        return subprocess.run(["sh", "-c", start + script], capture_output=True, text=True, cwd=tmp_path)

    bad, good = run(page(code)["bad"]), run(page(code)["good"])
    assert bad.returncode == 1
    assert f"error[{code}]" in bad.stderr
    assert good.returncode == 0, good.stderr
    assert good.stderr == ""


@pytest.mark.parametrize("code", of_kind("python"))
def test_script(code: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(CnnspecError) as caught:
        exec(compile(page(code)["bad"], code, "exec"), {})
    assert {diagnostic.code for diagnostic in caught.value.diagnostics} == {code}
    exec(compile(page(code)["good"], code, "exec"), {})


@pytest.mark.parametrize("code", [code for code in of_kind("sh") if code.startswith("E05")])
def test_commands_can_be_given(code: str) -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for script in (page(code)["bad"], page(code)["good"]):
        lines = [line.split() for line in script.splitlines() if line.startswith("cnnspec ")]
        assert lines, code
        for _, name, *words in lines:
            options = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)}
            assert {word for word in words if word.startswith("-")} <= options, code
            assert words[0] in shipped_specs() or words[0].endswith(".cnn"), code
    assert page(code)["bad"] != page(code)["good"]


def test_explain_tells_the_page() -> None:
    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cnnspec", "explain", code], capture_output=True, text=True, cwd=ROOT
        )

    assert run("e0301").stdout == explanation("E0301")
    unknown = run("E0391")
    assert unknown.returncode == 2
    assert "unknown code `E0391`; did you mean `E0311` or `E0301`?" in " ".join(unknown.stderr.split())
    assert "Traceback" not in unknown.stderr
