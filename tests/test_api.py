"""The Python API, as the package exports it."""

from __future__ import annotations

import base64
import importlib.metadata
import pkgutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

import cnnspec
from cnnspec.analysis.diff import compare
from cnnspec.resources import resource

ROOT = Path(__file__).parents[1]
HEAD = "network t\ninput 3x32x32\nclasses 10\n"


def test_every_export_is_what_it_says() -> None:
    for name in ("build", "check", "draw", "format", "load", "loads"):
        function = getattr(cnnspec, name)
        assert callable(function), f"{name} is hidden by a module of that name"
        assert function.__name__ == name
    assert issubclass(cnnspec.CnnspecError, Exception)


def test_every_public_name_survives_the_import_of_all_submodules() -> None:
    pytest.importorskip("torch")
    names = [found.name for found in pkgutil.walk_packages(cnnspec.__path__, "cnnspec.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    exporting = [module for module in (cnnspec, *modules) if hasattr(module, "__all__")]
    assert {"cnnspec", "cnnspec.testing", "cnnspec.training"} <= {module.__name__ for module in exporting}
    for module in exporting:
        assert set(module.__all__) <= set(dir(module)), module.__name__
        for name in module.__all__:
            value = getattr(module, name)
            assert getattr(module, name) is value
            assert not isinstance(value, ModuleType), f"{value.__name__} hides what {module.__name__} exports"


def test_the_version_is_that_of_the_installed_package() -> None:
    assert cnnspec.__version__ == importlib.metadata.version("cnnspec")


def test_the_language_has_a_version_of_its_own() -> None:
    page = (ROOT / "docs" / "reference" / "language" / "version.md").read_text("utf-8")
    assert f"version {cnnspec.LANGUAGE_VERSION} of the language" in page
    done = subprocess.run([sys.executable, "-m", "cnnspec", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"cnnspec {cnnspec.__version__} (language version {cnnspec.LANGUAGE_VERSION})\n"


def test_load_by_name_and_by_path() -> None:
    graph = cnnspec.load("resnet20")
    again = cnnspec.load(resource("specs", "resnet20.cnn"))
    assert graph == again
    assert (graph.name, graph.input_shape, graph.output_shape) == ("resnet20", (3, 32, 32), (10,))
    assert (graph.parameter_count, graph.macs, graph.depth) == (272378, 40813184, 20)
    node = next(node for node in graph.nodes if node.path == "stage2.0.downsample")
    assert (node.op.name, str(node.op), node.shape) == ("conv", "conv", (32, 16, 16))


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("resnet20", 272_378, 40.81),
        ("preact_resnet20", 272_250, 40.81),
        ("googlenet_cifar", 260_650, 79.64),
        ("densenet_cifar", 239_146, 72.28),
    ],
)
def test_published_figures(name: str, params: int, macs: float) -> None:
    graph = cnnspec.load(name)
    assert graph.parameter_count == params
    assert round(graph.macs / 1e6, 2) == macs
    torch = pytest.importorskip("torch")
    module = cnnspec.build(graph)
    assert sum(p.numel() for p in module.parameters()) == params
    assert module.eval()(torch.zeros(3, *graph.input_shape)).shape == (3, 10)


def test_a_folder_does_not_hide_a_shipped_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet20").mkdir()
    assert cnnspec.load("resnet20").parameter_count == 272_378
    (tmp_path / "lenet5").write_text("input 1x8x8\nconv 3x3 2\n")
    assert cnnspec.load("lenet5").input_shape == (1, 8, 8)  # a file does


def test_params_change_a_network() -> None:
    assert cnnspec.load("resnet20", n=9).depth == 56
    assert cnnspec.load("resnet20", classes=100).output_shape == (100,)
    assert cnnspec.load("resnet56").nodes == cnnspec.load("resnet20", n=9).nodes
    with pytest.raises(cnnspec.CnnspecError) as caught:
        cnnspec.load("resnet20", depth=3)
    assert caught.value.diagnostics[0].code == "E0217"
    with pytest.raises(cnnspec.CnnspecError):
        cnnspec.load("resnet20", n=[3])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("a", float("inf"), "E0204 `a` must be finite, got inf"),
        ("f", float("nan"), "E0204 `f` must be finite, got nan"),
        ("epochs", float("-inf"), "E0204 `epochs` must be finite, got -inf"),
        ("k", (1, 2, 3), "E0204 expected a tuple of two integers for `k`"),
        ("k", (), "E0204 expected a tuple of two integers for `k`"),
        ("k", (3.5, 2), "E0204 expected a tuple of two integers for `k`"),
        ("a", {10**400}, "E0204 unsupported type `set` for `a`"),
        ("a", [10**400], f"E0405 `a` exceeds the limit of {10**15:,}"),
        ("a", [1, float("nan")], "E0204 expected a list of finite numbers for `a`"),
        ("a", [[1]], "E0204 expected a list of finite numbers for `a`"),
        ("f", 10**400, f"E0405 `f` exceeds the limit of {10**15:,}"),
        ("lr", -(10**400), f"E0405 `lr` exceeds the limit of {10**15:,}"),
        ("k", (3, 10**400), f"E0405 `k` exceeds the limit of {10**15:,}"),
        ("a", "x" * 100_000, f"E0204 invalid value `a={'x' * 128}...`"),
        ("a", "1 +", "E0204 invalid value `a=1 +`"),
    ],
)  # fmt: skip
def test_values_from_python_that_the_language_does_not_have(name: str, value: object, said: str) -> None:
    text = (
        HEAD
        + "param a = 4\nparam f = 0.5\nparam k = 3x3\nconv k a | dropout f\nglobal_avgpool | flatten | linear classes\n"
    )
    assert cnnspec.loads(text, a=5, f=1, k=(3, 5)).nodes[0].shape == (5, 32, 32)
    with pytest.raises(cnnspec.CnnspecError) as raised:
        cnnspec.loads(text, **{name: value})
    (fault,) = raised.value.diagnostics
    assert f"{fault.code} {fault.message}" == said
    assert fault.help
    assert len(str(fault)) < 500


def test_faults_are_raised_and_listed() -> None:
    text = HEAD + "stem conv 3x3 16 strde=2 | bm\n"
    diagnostics = cnnspec.check(text, name="tiny.cnn")
    assert [d.code for d in diagnostics] == ["E0202", "E0201"]
    first = diagnostics[0]
    assert (first.line, first.column, first.help) == (4, 18, "did you mean `stride`?")
    assert "strde" in first.message
    with pytest.raises(cnnspec.CnnspecError) as caught:
        cnnspec.loads(text)
    assert [d.code for d in caught.value.diagnostics] == ["E0202", "E0201"]
    assert "network:4:18" in str(caught.value)
    assert cnnspec.check(HEAD + "conv 3x3 16 | global_avgpool | flatten | linear classes") == []


def test_blocks_alone_are_well_but_no_network() -> None:
    text = "block two(c) {\n    conv 3x3 c | relu\n}\n"
    assert cnnspec.check(text) == []
    with pytest.raises(cnnspec.CnnspecError, match="defines blocks but no network"):
        cnnspec.loads(text)


def test_format() -> None:
    assert cnnspec.format("stem   conv 3x3 16|bn") == "stem conv 3x3 16 | bn\n"
    with pytest.raises(cnnspec.CnnspecError):
        cnnspec.format("conv 3x3 |")


def test_files_beside_a_spec(tmp_path: Path) -> None:
    (tmp_path / "blocks.cnn").write_text("param w = 2\nblock wide(c) {\n    conv 3x3 w * c | relu\n}\n")
    (tmp_path / "net.cnn").write_text('use wide from "blocks.cnn"\n' + HEAD + "wide 8\n")
    assert cnnspec.load(tmp_path / "net.cnn").output_shape == (16, 32, 32)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "more.cnn").write_text("extends base\nnetwork more\n")
    (tmp_path / "deep" / "base.cnn").write_text(HEAD + "conv 3x3 4\n")
    assert cnnspec.load(tmp_path / "deep" / "more.cnn").name == "more"
    (tmp_path / "outside.cnn").write_text(HEAD + "conv 3x3 4\n")
    (tmp_path / "deep" / "link.cnn").symlink_to(tmp_path / "outside.cnn")
    (tmp_path / "deep" / "evil.cnn").write_text("extends link\n")
    with pytest.raises(cnnspec.CnnspecError) as caught:
        cnnspec.load(tmp_path / "deep" / "evil.cnn")
    assert caught.value.diagnostics[0].code == "E0218"


def test_models_survive_json() -> None:
    for path in resource("specs").glob("*.cnn"):
        model = cnnspec.load(path).model
        assert cnnspec.Model.model_validate_json(model.model_dump_json()) == model


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{\n    let a = foo\n    conv 3x3 a + 1\n}\n", "E0207"),
        ("let a = min(3)\nconv 3x3 a\n", "E0205"),
        ("repeat 4096 { repeat 4096 { repeat 64 { let z = 1 } } }\nconv 3x3 4\n", "E0404"),
        ("global_avgpool | gn 3\n", "E0309"),
    ],
    ids=["broken-let", "min-of-one", "empty-rounds", "single-numbers"],
)
def test_a_fault_is_one_diagnostic_and_no_exception(text: str, code: str) -> None:
    assert [d.code for d in cnnspec.check(HEAD + text)] == [code]


def test_build_refuses_what_is_no_size_of_images() -> None:
    pytest.importorskip("torch")
    strange: list[Any] = [96, (32.5, 32), "axb", [None, 3], {3: 4}]
    for size in strange:
        with pytest.raises(cnnspec.CnnspecError, match="invalid image size"):
            cnnspec.build("resnet20", input=size)


def test_what_is_no_size_of_images_is_said() -> None:
    graph = cnnspec.load("resnet20")
    assert graph.accepts(40, 40)
    sides: list[Any] = [32.5, "32", None]
    for side in sides:
        assert not graph.accepts(side, 32)
        with pytest.raises(cnnspec.CnnspecError, match="invalid image size"):
            graph.at(32, side)


def test_draw_takes_graphs_files_and_names() -> None:
    graph = cnnspec.load("resnet20")
    data = cnnspec.draw(graph)
    assert data == cnnspec.draw("resnet20", "svg") == cnnspec.draw(ROOT / "specs" / "resnet20.cnn", ".svg")
    assert cnnspec.draw(graph, other="resnet32") == cnnspec.draw("resnet20", other=cnnspec.load("resnet32")) != data
    for format in ("jpg", "", "svg.exe"):
        with pytest.raises(cnnspec.CnnspecError, match="E0523"):
            cnnspec.draw(graph, format)


def test_a_notebook_shows_the_diagram() -> None:
    graph = cnnspec.load("resnet20")
    text = graph._repr_html_()  # type: ignore[attr-defined]
    head, _, data = text.partition("base64,")
    assert base64.b64decode(data[: data.index('"')]) == cnnspec.draw(graph, theme="auto")
    assert head.startswith('<img alt="Graph(&#x27;resnet20&#x27;, ')
    assert data.endswith(f"<details><summary>Summary</summary>{cnnspec.summarize(graph)._repr_html_()}</details>")
    huge = cnnspec.loads(
        f"{HEAD}repeat 2100 as k {{ conv 3x3 (4 + k % 13) }}\nglobal_avgpool | flatten | linear classes\n"
    )
    assert huge._repr_html_() is None  # type: ignore[attr-defined]


def test_a_notebook_shows_tables() -> None:
    graph = cnnspec.load("resnet20")
    summary = cnnspec.summarize(graph)
    table = ElementTree.fromstring(summary._repr_html_())
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert rows[0][:4] == ["module", "kind", "output", "parameters"]
    assert [row[0] for row in rows[1:]] == [*(row.path for row in summary.upto(2)), "total"]
    assert rows[-1][3] == "272,378"
    found = compare(graph, cnnspec.load("preact_resnet20"))
    table = ElementTree.fromstring(replace(found, names=("<b>", "a&b\x1b"))._repr_html_())
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert rows[0] == ["module", "change", "<b>", "a&b\\x1b"]
    assert [row[:2] for row in rows[1:-3]] == [[change.path, change.kind] for change in found.changes]
    assert rows[-3] == ["parameters", "-128", "272,378", "272,250"]
