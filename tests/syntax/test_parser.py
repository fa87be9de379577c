"""Stored parser tables: they parse like a parser built from the grammar, and invalid ones are ignored."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import lark
import pytest

from cnnspec.resources import resource
from cnnspec.semantics.loader import shipped_specs, standard_blocks
from cnnspec.syntax import parser as parsing
from cnnspec.syntax.parser import Parsed

ROOT = Path(__file__).resolve().parents[2]
CASES = sorted((ROOT / "tests" / "cases").rglob("*.cnn"))
SIGNS = [*'{}()[]|:=,.@#\n "x', "..", "stage ", "when ", "block ", "3x3", "1e-3", "if ", "else", "ü", "train {", "§"]
GRAMMAR = resource("grammar", "cnn.lark").read_text("utf-8")
KEY = parsing.table_key(GRAMMAR)


@lru_cache(maxsize=1)
def built() -> lark.Lark:
    return parsing.build_parser(GRAMMAR)


@lru_cache(maxsize=1)
def tables() -> bytes:
    return parsing.serialize(built(), KEY)


@lru_cache(maxsize=1)
def loaded() -> lark.Lark:
    parser = parsing.deserialize(tables(), KEY)
    assert parser is not None
    return parser


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and a package without tables of its own."""
    monkeypatch.setenv("CNNSPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parsing, "TABLES", "absent.json")
    parsing.load_parser.cache_clear()
    yield tmp_path / "cache"
    parsing.load_parser.cache_clear()


def plain(node: Any) -> Any:
    """Convert a tree to plain data."""
    if isinstance(node, Parsed):
        place = (getattr(node, "start_pos", None), getattr(node, "end_pos", None))
        return node.data, place, [plain(child) for child in node.children]
    return node and (node.type, node.start_pos, node.end_pos, str(node))


def outcome(parser: lark.Lark, text: str) -> Any:
    """Return the tree of a text, or the position of the syntax error and the expected terminals."""
    try:
        return plain(parser.parse(text))
    except lark.UnexpectedToken as error:
        return error.pos_in_stream, error.token.type, sorted(error.expected)
    except lark.UnexpectedCharacters as error:
        return error.pos_in_stream, sorted(error.allowed or ())


def start() -> lark.Lark:
    """Return the parser that the next process would load."""
    parsing.load_parser.cache_clear()
    return parsing.load_parser()


@pytest.mark.parametrize("path", [*shipped_specs().values(), *standard_blocks().values(), *CASES], ids=lambda p: p.name)
def test_stored_tables_parse_files_like_the_grammar(path: Path) -> None:
    text = path.read_text("utf-8")
    assert outcome(loaded(), text) == outcome(built(), text)


@pytest.mark.parametrize("seed", range(20))
def test_stored_tables_parse_damaged_files_like_the_grammar(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(8):
        text = rng.choice(CASES).read_text("utf-8")
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice([*SIGNS, ""]) + text[at + rng.randint(0, 4) :]
        assert outcome(loaded(), text) == outcome(built(), text), text


def usable(stored: bytes) -> bool:
    """Check that tables can be loaded; Lark numbers the states of a parser differently in each process."""
    parser = parsing.deserialize(stored, KEY)
    return parser is not None and outcome(parser, "conv 3x3 16\n") == outcome(built(), "conv 3x3 16\n")


def test_the_first_start_stores_tables_for_the_next(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    (file,) = cache.iterdir()
    assert usable(file.read_bytes())
    monkeypatch.setattr(parsing, "build_parser", None)
    assert outcome(start(), "conv 3x3 16\n") == outcome(built(), "conv 3x3 16\n")


def other_key(stored: bytes) -> bytes:
    return parsing.serialize(built(), KEY.replace(lark.__version__, "0.0.1"))


def one_state_changed(stored: bytes) -> bytes:
    head, body = stored.split(b"\n", 1)
    data = json.loads(body)
    data["parser"]["parser"]["states"][3] = data["parser"]["parser"]["states"][4]
    return head + b"\n" + json.dumps(data, separators=(",", ":")).encode()


DAMAGES = {
    "another version of Lark": other_key,
    "empty": lambda stored: b"",
    "cut off": lambda stored: stored[: len(stored) // 2],
    "one byte": lambda stored: stored[:5000] + bytes([stored[5000] ^ 1]) + stored[5001:],
    "one state": one_state_changed,
    "no header": lambda stored: stored.split(b"\n", 1)[1],
    "not JSON": lambda stored: b"\x80\x04\x95 pickle\n" + b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_tables_are_replaced(cache: Path, damage: Any) -> None:
    cache.mkdir()
    file = cache / f"grammar-{KEY[:40]}.json"
    file.write_bytes(damage(tables()))
    file.chmod(0o600)
    assert outcome(start(), "conv 3x3 16\n") == outcome(built(), "conv 3x3 16\n")
    assert usable(file.read_bytes())


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners")
@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_tables_that_others_can_write_are_not_trusted(cache: Path, mode: int) -> None:
    start()
    (file,) = cache.iterdir()
    file.chmod(mode)
    assert parsing._load(file, KEY, check_owner=True) is None
    start()
    assert file.stat().st_mode & 0o777 == 0o600, "replaced by a private file"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners")
def test_tables_of_another_user_are_not_trusted(tmp_path: Path) -> None:
    file = tmp_path / "tables"
    file.touch(0o600)
    status = list(file.stat())
    for owner, trusted in ((os.geteuid(), True), (0, True), (os.geteuid() + 1, False)):
        status[4] = owner
        assert parsing._private(os.stat_result(status)) is trusted


def test_an_unwritable_cache_is_not_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_text("a file in place of the folder")
    assert outcome(start(), "relu\n") == outcome(built(), "relu\n")
    cache.unlink()

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert outcome(start(), "relu\n") == outcome(built(), "relu\n")
    assert list(cache.iterdir()) == [], "nothing partial is left"


def test_a_missing_home_folder_is_not_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CNNSPEC_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", missing)
    assert outcome(start(), "relu\n") == outcome(built(), "relu\n")


def test_several_processes_store_tables_at_once(tmp_path: Path) -> None:
    env = {**os.environ, "CNNSPEC_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "cnnspec", "check", "resnet20"]
    processes = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True, cwd=ROOT, env=env) for _ in range(4)]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert out.startswith("resnet20: ok"), out
    (file,) = tmp_path.iterdir()
    assert usable(file.read_bytes())


def test_a_wheel_contains_its_tables(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert usable(archive.read("cnnspec/grammar/cnn.tables.json"))
        archive.extractall(tmp_path / "site")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "CNNSPEC_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "cnnspec", "check", "resnet20"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.stdout.startswith("resnet20: ok"), done.stderr
    assert not (tmp_path / "cache").exists(), "the tables of the package are used"
