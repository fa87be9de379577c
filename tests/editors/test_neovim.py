"""The files for Neovim: highlighting and indentation of the shipped specs, and settings, in the real editor."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness.highlighting import character_types, lexer, write_samples

from cnnspec.resources import resource
from cnnspec.syntax.keywords import RESERVED

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "editors" / "neovim"
NVIM = shutil.which("nvim")
SPECS = sorted([*resource("specs").glob("*.cnn"), *resource("specs", "blocks").glob("*.cnn")])
SAMPLE = (
    "googlenet",
    "deeplabv3_resnet50",
    "rexnet_100",
    "ghostnet_100",
    "resnet50_fpn",
    "timm",
    "squeeze_excite",
    "inverted_residual",
)
GROUPS = {
    "Comment.Single": {"cnnComment", "cnnTodo"},
    "Keyword": {"cnnStatement"},
    "Keyword.Constant": {"cnnConstant"},
    "Keyword.Declaration": {"cnnStage"},
    "Keyword.Reserved": {"cnnJoin"},
    "Literal.Number": {"cnnNumber"},
    "Literal.Number.Integer": {"cnnNumber"},
    "Literal.String": {"cnnString"},
    "Name": {"cnnName"},
    "Name.Attribute": {"cnnAttribute"},
    "Name.Builtin.Pseudo": {"cnnDim"},
    "Name.Class": {"cnnDefined"},
    "Name.Function": {"cnnCall"},
    "Name.Label": {"cnnLabel", "cnnReference"},
    "Operator": {"cnnOperator"},
    "Operator.Word": {"cnnRepeat"},
    "Punctuation": {"cnnPunctuation"},
    "Text": {""},
}
"""The highlight groups of each type of token."""

needs_neovim = pytest.mark.skipif(NVIM is None, reason="nvim is not installed")


def neovim(script: str, *files: Path) -> Any:
    """Run a script in Neovim with the plugin, and return what it prints as JSON."""
    command = [str(NVIM), "--headless", "-n", "-u", "NONE", "-i", "NONE", "--cmd", f"set rtp^={PLUGIN}"]
    command += ["--cmd", "filetype plugin indent on", "--cmd", "syntax on"]
    command += ["--cmd", f"let g:files = {json.dumps([*map(str, files)])}", "-c", f"luafile {script}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


def compare(files: list[Path], *, formatted: bool = True) -> None:
    """Compare the groups of all characters with the lexer, and the indentation with the text, if it is formatted."""
    found = neovim(str(Path(__file__).parent / "tokens.lua"), *files)
    for path, result in zip(files, found, strict=True):
        text = path.read_text("utf-8")
        assert result["type"] == "cnn"
        groups = [group for line in result["groups"] for group in ([*line.split(" "), ""] if line else [""])]
        for place, (kind, at) in enumerate(character_types(text)):
            assert groups[at] in GROUPS[kind], f"{path.name}, character {place}: {kind}"
        assert not formatted or "\n".join(result["indented"]) + "\n" == text, path.name


@needs_neovim
def test_highlighting_and_indentation_of_specs() -> None:
    compare([path for path in SPECS if path.stem in SAMPLE])


@needs_neovim
def test_highlighting_of_samples_of_the_documentation(tmp_path: Path) -> None:
    compare([path for path in write_samples(tmp_path) if "again" in path.read_text("utf-8")], formatted=False)


@needs_neovim
@pytest.mark.slow
def test_highlighting_of_all_samples_of_the_documentation(tmp_path: Path) -> None:
    compare(write_samples(tmp_path), formatted=False)


@needs_neovim
@pytest.mark.slow
def test_highlighting_and_indentation_of_all_specs() -> None:
    compare(SPECS)


SETTINGS = """
vim.cmd("edit /new.cnn")
vim.cmd("normal! iblock b(c) {\\rconv 3x3 c\\radd {\\rin # {\\rrelu\\r}\\r| bn\\r}\\rnetwork n")
local text = vim.api.nvim_buf_get_lines(0, 0, -1, true)
vim.cmd("normal! gg2j")
io.stdout:write(vim.fn.json_encode({ text = text, comment = vim.bo.commentstring, width = vim.bo.shiftwidth,
  tabs = vim.bo.expandtab, omni = vim.bo.omnifunc, undo = vim.b.undo_ftplugin ~= nil }))
vim.cmd("qall!")
"""


@needs_neovim
def test_settings_and_indentation_of_typed_text(tmp_path: Path) -> None:
    (tmp_path / "settings.lua").write_text(SETTINGS, "utf-8")
    found = neovim(str(tmp_path / "settings.lua"))
    assert found["text"] == [
        "block b(c) {",
        "    conv 3x3 c",
        "    add {",
        "        in # {",
        "        relu",
        "    }",
        "        | bn",
        "}",
        "network n",
    ]
    assert (found["comment"], found["width"], found["tabs"], found["undo"]) == ("# %s", 4, True, True)


def test_words_of_the_grammars_are_those_of_the_language() -> None:
    """Needs no editor: the lexer, the syntax file and the TextMate grammar name the same words."""
    assert set(lexer().RESERVED.split("|")) == RESERVED
    syntax = (PLUGIN / "syntax" / "cnn.vim").read_text("utf-8")
    rules = re.findall(r"^syntax match (cnn\w+) +/\\<\\%\(([a-z\\|]+)\\\)\\>/$", syntax, re.M)
    assert {word for _, words in rules for word in words.split(r"\|")} == RESERVED
    listed = re.search(r"let s:reserved = (.*?)\nlet ", syntax, re.S)
    assert listed is not None
    assert set(re.findall(r"[a-z]{2,}", re.sub(r"s:\w+", "", listed[1]))) == RESERVED
