"""Networks in several files, and the errors of reading them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cnnspec import ir, load
from cnnspec.compiler import Compilation, compile_file, compile_source
from cnnspec.diagnostics import Source
from cnnspec.semantics.loader import Library

NETWORK = "input 3x8x8\nclasses 10\n"


def write(folder: Path, **files: str) -> Compilation:
    """Write files and check `net`."""
    for name, text in files.items():
        (folder / f"{name}.cnn").write_text(text)
    return compile_file(folder / "net.cnn")


def graph_of(done: Compilation) -> ir.Graph:
    assert [str(diagnostic) for diagnostic in done.diagnostics if diagnostic.severity == "error"] == []
    return done.require_graph()


def errors(done: Compilation) -> list[tuple[str, int | None]]:
    return [(diagnostic.code, diagnostic.line) for diagnostic in done.diagnostics if diagnostic.severity == "error"]


def test_circular_use(tmp_path: Path) -> None:
    done = write(
        tmp_path,
        net=f'use one from "a"\n{NETWORK}one 8',
        a='use two from "b"\nblock one(c) { conv 3x3 c | two }',
        b='use one from "a"\nblock two() { relu }',
    )
    assert errors(done) == [("E0213", 1)]
    assert "circular include: a.cnn -> b.cnn -> a.cnn" in done.diagnostics[0].message


def test_a_file_that_uses_itself(tmp_path: Path) -> None:
    done = write(tmp_path, net=f'use one from "net"\n{NETWORK}block one(c) {{ conv 3x3 c }}\none 8\n')
    assert [code for code, _ in errors(done)] == ["E0213"]


def test_a_chain_of_files(tmp_path: Path) -> None:
    chain = {f"f{n}": f"extends f{n + 1}\n" for n in range(12)}
    done = write(tmp_path, net="extends f0\n", **chain, f12=f"{NETWORK}conv 3x3 8\n")
    assert [code for code, _ in errors(done)] == ["E0405"]
    assert "exceeds the limit of 8 files" in done.diagnostics[0].message


def test_blocks_with_the_same_name_from_two_files(tmp_path: Path) -> None:
    done = write(
        tmp_path,
        net=f'use one from "a"\nuse two from "b"\n{NETWORK}one | two\n',
        a="block same() { conv 3x3 4 }\nblock one() { same }\n",
        b="block same() { conv 3x3 6 }\nblock two() { same }\n",
    )
    assert [node.shape for node in graph_of(done)] == [(4, 8, 8), (6, 8, 8)]
    assert done.model is not None
    assert sorted(done.model.blocks) == ["one", "same", "same_", "two"]


def test_defaults_apply_to_the_extended_network(tmp_path: Path) -> None:
    done = write(
        tmp_path,
        net="extends base\ndefault conv bias\n",
        base=f"{NETWORK}default conv stride=2\nlet half = in.w // 2\nconv 3x3 half\n",
    )
    (node,) = graph_of(done)
    assert node.shape == (4, 4, 4)
    assert sorted(node.weights) == ["bias", "weight"]


def test_an_expectation_of_layers_that_were_replaced(tmp_path: Path) -> None:
    base = f"{NETWORK}conv 3x3 8\nconv 3x3 8\nexpect depth = 2\n"
    (error,) = write(tmp_path, net="extends base\nconv 3x3 4\n", base=base).diagnostics
    assert (error.code, error.name) == ("E0401", "base.cnn")
    assert "defines layers, which replace all layers of" in error.notes[0]


def test_a_value_of_the_file_that_depends_on_a_tensor(tmp_path: Path) -> None:
    done = write(
        tmp_path, net=f"{NETWORK}let half = in.w // 2\nconv 3x3 half\nlet again = half + in.c\nconv 3x3 again\n"
    )
    assert [node.shape[0] for node in graph_of(done)] == [4, 8]


def test_errors_in_a_file_of_blocks(tmp_path: Path) -> None:
    text = "block one() { two }\nblock two() { one }\nblock three() { relou }\n"
    assert {code for code, _ in errors(write(tmp_path, net=text))} == {"E0210", "E0201"}
    assert {code for code, _ in errors(write(tmp_path, net=f"{NETWORK}relu\n{text}"))} == {"E0210", "E0201"}


def test_the_parameters_of_a_file_that_extends(tmp_path: Path) -> None:
    base = f"{NETWORK}param c = 8\nparam act = relu\nconv 3x3 c | act\n"
    done = write(tmp_path, net="param c = 4\nextends base act=in.c\n", base=base)
    assert errors(done) == [("E0211", 1), ("E0207", 2)]
    done = write(tmp_path, net="param width = 4\nextends base c=2*width act=gelu\n", base=base)
    assert [node.op.name for node in graph_of(done)] == ["conv", "gelu"]
    assert graph_of(done).nodes[0].shape == (8, 8, 8)


@pytest.mark.parametrize(
    ("net", "middle", "origin"),
    [
        ("extends base c=0\n", "", "c=0"),
        ("extends middle c=0\n", "param c = 8\nextends base c=c\n", "c=0"),
        ("extends middle c=0\n", "extends base\n", "c=0"),
        ("extends middle\n", "extends base c=0\n", ("middle.cnn", "extends base c=0")),
        ("extends base\n", "", None),
        ("extends resnet20 n=0\n", "", "n=0"),
    ],
)
def test_an_error_in_an_extended_file_shows_who_set_its_parameters(
    net: str, middle: str, origin: str | tuple[str, str] | None, tmp_path: Path
) -> None:
    base = f"{NETWORK}param c = {8 if origin else 0}\nconv 3x3 c\n"
    done = write(tmp_path, net=net, middle=middle, base=base)
    for error in done.diagnostics:
        labels = [(Path(label.span.source.name).name, label.span.text) for label in error.labels]
        if isinstance(origin, str):
            assert error.span is not None
            assert (Path(error.span.source.name).name, error.span.text) == ("net.cnn", origin)
            assert {"base.cnn", "resnet20.cnn"} & {name for name, _ in labels}
        else:
            assert error.name == "base.cnn"
            assert [label for label in labels if label[1].startswith("extends")] == ([origin] if origin else [])


def test_an_unavailable_file_is_always_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library, "find", lambda *_: None)
    assert errors(write(tmp_path, net="extends base\n")) == [("E0212", 1)]


def test_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "d.cnn").mkdir()
    os.mkfifo(tmp_path / "f.cnn")
    for wanted, what in (("d", "a folder"), ("f", "not a regular file")):
        (found,) = write(tmp_path, net=f"extends {wanted}\n").diagnostics
        assert (found.code, found.message, found.line) == ("E0212", f"`{wanted}.cnn` is {what}", 1)
        assert (
            found.help
            == "check the path: cnnspec looks for files in the folder of the spec, then among the shipped specs"
        )
    (tmp_path / "resnet20.cnn").mkdir()
    assert graph_of(write(tmp_path, net="extends resnet20\n")).parameter_count == 272_378


def test_calls_of_unavailable_blocks_are_not_checked(tmp_path: Path) -> None:
    calls = "default conv_bn valid\naa 3 | bb | conv_bn 3x3 8 valid\nadd { in; aa 3 }\n"
    done = write(tmp_path, net=f'use aa, bb, conv_bn from "missing"\n{NETWORK}{calls}relou\n')
    assert errors(done) == [("E0212", 1), ("E0201", 7)]
    done = write(tmp_path, net=f'use aa, bb, conv_bn from "has"\n{NETWORK}{calls}', has="block aa(c) { conv 3x3 c }\n")
    assert errors(done) == [("E0201", 1), ("E0201", 1)]
    base = f'use aa from "missing"\n{NETWORK}aa 3\n'
    done = write(tmp_path, net="extends base\naa 3 | relu\n", base=base)
    assert [code for code, _ in errors(done)] == ["E0212"]


@pytest.mark.parametrize(
    ("file", "name"), [("...cnn", "network"), ("my net-2.cnn", "my net-2"), (".hidden.cnn", "hidden")]
)
def test_a_network_without_a_name_has_the_name_of_its_file(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text("input 1x8x8\nclasses 10\nglobal_avgpool | flatten | linear classes\n", "utf-8")
    assert load(tmp_path / file).name == name


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.cnn").mkdir()
    os.mkfifo(tmp_path / "pipe.cnn")
    (tmp_path / "binary.cnn").write_bytes(b"input\0")
    expected = {
        "folder": ("E0212", "choose a file in the folder"),
        "pipe": ("E0212", None),
        "binary": ("E0107", "save the spec as UTF-8 text"),
        "resnet21": ("E0212", "did you mean `resnet20`?"),
        "quite_different": ("E0212", "run `cnnspec list` to see the shipped networks"),
        "x" * 300: ("E0212", None),
    }
    for name, (code, help) in expected.items():
        (found,) = compile_file(tmp_path / f"{name}.cnn").diagnostics
        assert (found.code, found.help) == (code, help)


def test_circular_links(tmp_path: Path) -> None:
    (tmp_path / "a.cnn").symlink_to(tmp_path / "b.cnn")
    (tmp_path / "b.cnn").symlink_to(tmp_path / "a.cnn")
    assert errors(write(tmp_path, net="extends a\n")) == [("E0212", 1)]


def test_limits_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: f"block {name}() {{ relu }}\n" for name in ("a", "b")}
    net = f'use a from "a"\nuse b from "b"\n{NETWORK}a | b\n'
    assert errors(write(tmp_path, net=net, **files)) == []
    monkeypatch.setattr("cnnspec.semantics.loader.MAX_WORDS", 25)
    assert ("E0405", 2) in errors(write(tmp_path, net=net, **files))
    monkeypatch.setattr("cnnspec.semantics.loader.MAX_FILES", 1)
    assert ("E0405", 1) in errors(write(tmp_path, net=net, **files))


def test_a_text_from_memory_extends_shipped_networks_only() -> None:
    (found,) = compile_source(Source("text", "extends resnet21\n")).diagnostics
    assert (found.code, found.help) == ("E0212", "did you mean `resnet20`?")
    assert graph_of(compile_source(Source("text", "extends resnet20\n"))).parameter_count == 272_378
