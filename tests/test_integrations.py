"""Hooks for pre-commit, the GitHub action, and the advice on Git: what the files say is run."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "guides" / "editors.md").read_text("utf-8")
GOOD = "network good\ninput 3x8x8\n\nstem conv 3x3 8\nhead global_avgpool | flatten | linear 10\n"
FILES = {
    "good": GOOD,
    "blocks": "block pair(c) {\n    conv 3x3 c\n    relu\n}\n",
    "unformatted": GOOD.replace("input", "input  ").replace(" | ", "|"),
    "lint": GOOD.replace("network", "let unused = 3\nnetwork"),
    "bad shape": GOOD.replace(" | flatten", ""),
    "bad syntax": GOOD.replace("conv 3x3 8", "conv 3x3 }"),
    "not text": "\0",
}
FAILING = {"bad shape", "bad syntax", "not text"}
FENCES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


HOOKS = {hook["id"]: hook for hook in read(".pre-commit-hooks.yaml")}
ACTION = read("action.yml")
STEPS = {step["id"]: step for step in ACTION["runs"]["steps"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the environment that the action installs, and an empty folder `work`."""
    command = tmp_path / "cnnspec" / "bin" / "cnnspec"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cnnspec "$@"\n', "utf-8")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "work").mkdir()
    return tmp_path


def execute(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `work`, with the command `cnnspec` of this checkout."""
    path = f"{folder / 'cnnspec' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "RUNNER_TEMP": str(folder), **variables}
    return subprocess.run(command, cwd=folder / "work", env=environment, capture_output=True, text=True, check=False)


def run_step(name: str, folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the action as GitHub does, with the defaults of inputs that are not given."""
    values = {key: entry["default"] for key, entry in ACTION["inputs"].items()} | inputs
    variables = {
        variable: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: values[match[1]], text)
        for variable, text in STEPS[name].get("env", {}).items()
    }
    assert STEPS[name]["shell"] == "bash"
    script = folder / "step.sh"
    script.write_text(STEPS[name]["run"], "utf-8")
    return execute(["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)], folder, **variables)


@pytest.mark.parametrize("repository", ["OWNER/cnnspec", "some/fork"])
def test_the_site_names_the_repository(repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have a placeholder and a note on it; the site has the address once it is known."""
    pages = {path: path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")}
    assert [path.name for path, text in pages.items() if "OWNER" in text] == ["editors.md"]
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec = spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    conf: Any = module_from_spec(spec)
    spec.loader.exec_module(conf)
    conf.repository = repository
    source = [PAGE]
    conf.name_repository(None, "", source)
    known = repository != "OWNER/cnnspec"
    assert ("OWNER" in source[0], "no public repository" in source[0]) == (not known, not known)
    assert source[0].count(repository) == PAGE.count("OWNER/cnnspec") == 2


# --- pre-commit ----------------------------------------------------------------------------------


def test_hooks_have_what_pre_commit_requires() -> None:
    assert list(HOOKS) == ["cnnspec-check", "cnnspec-fmt"]
    for hook in HOOKS.values():
        assert {"id", "name", "entry", "language"} <= set(hook)
        assert hook["language"] == "python"
        matched = ("net.cnn", "specs/blocks/a b.cnn")
        assert all(re.search(hook["files"], path) for path in matched)
        assert not any(re.search(hook["files"], path) for path in ("net.cnn.bak", "cnn", "netcnn", "net.py"))


@pytest.mark.parametrize("kind", FILES)
def test_hooks_accept_good_files_only(kind: str, folder: Path) -> None:
    """A hook passes if its command succeeds and changes no file."""
    path = folder / "work" / "a net.cnn"
    passed = {}
    for name, hook in HOOKS.items():
        path.write_text(FILES[kind], "utf-8")
        done = execute([*shlex.split(hook["entry"]), path.name], folder)
        passed[name] = done.returncode == 0 and path.read_text("utf-8") == FILES[kind]
        assert done.returncode in (0, 1), done.stderr
    formatted = kind not in ("unformatted", "bad syntax", "not text")
    assert passed == {"cnnspec-check": kind not in FAILING, "cnnspec-fmt": formatted}


# --- the action ----------------------------------------------------------------------------------


def test_action_passes_values_by_variables_only() -> None:
    """An expression in a script would run whatever an input contains."""
    assert all("${{" not in step.get("run", "") for step in STEPS.values())
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text("utf-8")))
    assert used == set(ACTION["inputs"])
    assert ACTION["runs"]["using"] == "composite"
    assert STEPS["format"]["if"] == "inputs.format == 'true' && (success() || steps.check.outcome == 'failure')"


@pytest.mark.parametrize("kind", FILES)
def test_action_annotates_the_files_of_a_repository(kind: str, folder: Path) -> None:
    path = folder / "work" / "specs" / "a net.cnn"
    path.parent.mkdir()
    path.write_text(FILES[kind], "utf-8")
    done = run_step("check", folder)
    assert done.returncode == int(kind in FAILING), done.stderr
    annotations = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert bool(annotations) == (kind in {*FAILING, "lint"})
    assert all(
        line.startswith(("::error file=specs/a net.cnn,", "::warning file=specs/a net.cnn,")) for line in annotations
    )
    done = run_step("format", folder)
    assert done.returncode == int(kind in ("unformatted", "bad syntax", "not text")), done.stdout
    assert path.read_text("utf-8") == FILES[kind]
    assert ("+input 3x8x8" in done.stdout) == (kind == "unformatted")


@pytest.mark.parametrize("step", ["check", "format"])
def test_action_takes_one_path_per_line(step: str, folder: Path) -> None:
    for name in ("a b.cnn", "$(touch hacked).cnn", "--set.cnn", "*.cnn"):
        (folder / "work" / name).write_text(GOOD, "utf-8")
    (folder / "work" / "other.cnn").write_text(FILES["bad syntax"], "utf-8")
    listed = "\na b.cnn\n\n$(touch hacked).cnn\n--set.cnn\n*.cnn\n"
    done = run_step(step, folder, files=listed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_step(step, folder, files=f"{listed}other.cnn\n").returncode == 1
    assert run_step(step, folder, files="missing.cnn").returncode == 1
    assert not (folder / "work" / "hacked").exists()


@pytest.mark.slow
def test_action_installs_the_package(tmp_path: Path) -> None:
    (tmp_path / "step.sh").write_text(STEPS["install"]["run"], "utf-8")
    variables = {"PYTHON": sys.executable, "RUNNER_TEMP": str(tmp_path), "GITHUB_ACTION_PATH": str(ROOT)}
    environment = {**os.environ, **variables}
    environment.pop("PYTHONPATH", None)
    subprocess.run(["bash", "-eo", "pipefail", str(tmp_path / "step.sh")], env=environment, check=True)
    command = [tmp_path / "cnnspec" / "bin" / "cnnspec", "check", "resnet20"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("resnet20: ok")


# --- the page ------------------------------------------------------------------------------------


def test_page_shows_the_hooks_and_the_inputs_that_exist() -> None:
    configuration, workflow = map(yaml.safe_load, FENCES)
    assert {hook["id"] for hook in configuration["repos"][0]["hooks"]} == set(HOOKS)
    step = workflow["jobs"]["specs"]["steps"][-1]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE, re.M)[: len(ACTION["inputs"])] == list(ACTION["inputs"])


def test_git_attributes_of_the_page(tmp_path: Path) -> None:
    (line,) = re.findall(r"^\*\.cnn .*$", PAGE, re.M)
    (tmp_path / ".gitattributes").write_text(f"{line}\n", "utf-8")
    (tmp_path / "net.cnn").write_bytes(GOOD.replace("\n", "\r\n").encode())
    git = ["git", "-c", "core.safecrlf=false"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([*git, "add", "net.cnn"], cwd=tmp_path, check=True)
    stored = subprocess.run([*git, "cat-file", "blob", ":net.cnn"], cwd=tmp_path, capture_output=True, check=True)
    assert stored.stdout.decode() == GOOD
    asked = [*git, "check-attr", "linguist-language", "linguist-detectable", "--", "net.cnn"]
    done = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == ["HCL", "false"]
