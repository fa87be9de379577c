"""The extension for VS Code: its words, its files, and its grammar, which gives each token the scope of its type.

`make vscode` installs what the grammar tests need; without it they are skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.highlighting import character_types, write_samples

import cnnspec
from cnnspec.resources import resource
from cnnspec.syntax.keywords import RESERVED

EXTENSION = Path(__file__).resolve().parents[2] / "editors" / "vscode"
GRAMMAR = json.loads((EXTENSION / "syntaxes" / "cnn.tmLanguage.json").read_text("utf-8"))
PACKAGE = json.loads((EXTENSION / "package.json").read_text("utf-8"))
SCOPES = {
    "Comment.Single": "comment.line.",
    "Keyword": "keyword.control.",
    "Keyword.Constant": "constant.language.",
    "Keyword.Declaration": "storage.type.stage.",
    "Keyword.Reserved": "support.function.join.",
    "Literal.Number": "constant.numeric.",
    "Literal.Number.Integer": "constant.numeric.",
    "Literal.String": "string.quoted.double.",
    "Name": "variable.other.cnn",
    "Name.Attribute": "variable.parameter.",
    "Name.Builtin.Pseudo": "variable.language.dimension.",
    "Name.Class": "entity.name.type.",
    "Name.Function": "entity.name.function.call.",
    "Name.Label": ("entity.name.label.", "variable.other.label."),
    "Operator": "keyword.operator.",
    "Operator.Word": "keyword.other.repeat.",
    "Punctuation": "punctuation.",
    "Text": "source.cnn",
}
"""The start of the scope of each type of token."""


def test_words_of_the_grammar_are_those_of_the_language() -> None:
    lists = [
        match for rule in GRAMMAR["patterns"] for match in re.findall(r"\\b\(?(?:\?:)?([a-z|]+)\)\\b", rule["match"])
    ]
    assert {word for words in lists for word in words.split("|")} == RESERVED
    reserved = {match for rule in GRAMMAR["patterns"] for match in re.findall(r"\(\?!\(\?:([a-z|]+)\)", rule["match"])}
    assert [set(words.split("|")) for words in reserved] == [RESERVED]


def test_files_of_the_extension_exist() -> None:
    contributed = PACKAGE["contributes"]
    (language,), (grammar,) = contributed["languages"], contributed["grammars"]
    assert language["id"] == grammar["language"] == "cnn"
    assert language["extensions"] == [".cnn"]
    assert GRAMMAR["scopeName"] == grammar["scopeName"]
    for path in (language["configuration"], grammar["path"]):
        assert json.loads((EXTENSION / path).read_text("utf-8"))
    source = (EXTENSION / "src" / "extension.js").read_text("utf-8")
    for command in contributed["commands"]:
        assert f'registerCommand("{command["command"]}"' in source


def test_lock_file_names_no_registry() -> None:
    text = (EXTENSION / "package-lock.json").read_text("utf-8")
    locked: dict[str, Any] = json.loads(text)["packages"]
    assert not re.search(r"https?://[^\"]*\.tgz|resolved", text)
    assert all("integrity" in entry for name, entry in locked.items() if name)
    assert locked[""]["devDependencies"] == PACKAGE["devDependencies"]


def test_every_token_of_every_spec_has_the_scope_of_its_type(tmp_path: Path) -> None:
    """And of every sample of the documentation."""
    node = shutil.which("node")
    if node is None or not (EXTENSION / "node_modules" / "vscode-textmate").is_dir():
        pytest.skip("run `make vscode`: node or its packages are not installed")
    specs = sorted([*resource("specs").glob("*.cnn"), *resource("specs", "blocks").glob("*.cnn")])
    specs += write_samples(tmp_path)
    command = [node, str(EXTENSION / "tools" / "tokens.mjs"), *map(str, specs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    for path, lines in zip(specs, json.loads(done.stdout), strict=True):
        text = path.read_text("utf-8")
        starts = [0]
        for line in text.split("\n"):
            starts.append(starts[-1] + len(line.encode("utf-16-le")) // 2 + 1)
        scopes = {
            start + at: scope
            for start, tokens in zip(starts, lines, strict=False)
            for first, last, scope in tokens
            for at in range(first, last)
        }
        wrong = [
            f"{path.name}, character {at}: {kind} has {scopes[at]}"
            for kind, at in character_types(text, unit="utf-16-le")
            if not scopes[at].startswith(SCOPES[kind])
        ]
        assert wrong == []


def test_page_of_the_preview_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """The policy lets the drawing be seen, and nothing in it run."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    hostile = cnnspec.draw("resnet20").decode().replace("</svg>", "<script>document.title = 'run'</script></svg>")
    code = (
        "process.stdout.write(require('./src/page.js').previewPage(require('fs').readFileSync(0, 'utf8'), '<b>note'))"
    )
    done = subprocess.run([node, "-e", code], cwd=EXTENSION, input=hostile, capture_output=True, text=True, check=True)
    (tmp_path / "page.html").write_text(done.stdout, "utf-8")
    page = browser.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.images[0].naturalWidth") > 100
    assert page.inner_text("p") == "<b>note"
    assert page.evaluate("getComputedStyle(document.images[0]).backgroundColor") == "rgb(255, 255, 255)"
    assert page.title() == "Diagram"
    assert problems == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=https://example.org/a.png>')")
    page.wait_for_timeout(100)
    assert any("Content Security Policy" in problem for problem in problems)
    page.close()
