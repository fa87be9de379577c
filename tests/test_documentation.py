"""Tests of the documentation: samples compile, commands exist, the reference is complete, links work.

Kinds of fences in `README.md` and `docs/**/*.md`, except for the pages of `docs/errors`:

    cnn                 a complete spec without diagnostics
    cnn-part            statements without diagnostics after a header; `# input 64x16x16` in line 1 sets the image
    cnn-error E0301 ... a spec or a part with exactly these diagnostics; if the next fence is `text` and starts with
                        `error[`, it is the printed diagnostic
    keys                the weight keys of the preceding sample; a line of dots stands for any keys
    python run          a script that runs; if the next fence is `text`, it is the output
    text output         lines of the output of the command in the preceding `sh` fence; `...` stands for any lines
    {...}               a directive of Sphinx
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import cnnspec
from cnnspec import api, cli, limits, loads, testing, training
from cnnspec.compiler import Compilation, compile_source
from cnnspec.diagnostics import CnnspecError, Source, render
from cnnspec.ir.evaluate import show
from cnnspec.ops import JOINS, OPS, Op
from cnnspec.ops.inits import INITS
from cnnspec.recipe import CHOICES, Scalars
from cnnspec.schema import Parameter, Type
from cnnspec.semantics.loader import shipped_specs, standard_block, standard_blocks

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if path.parent != DOCS / "errors")]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
README = (ROOT / "README.md").read_text("utf-8")
LANGUAGE = "\n".join(path.read_text("utf-8") for path in sorted((DOCS / "reference" / "language").glob("*.md")))
HEADER = "network t\ninput {}\nclasses 10\n\n"
FENCES = {"cnn", "cnn-part", "cnn-error", "keys", "python", "sh", "text", "json", "yaml", "lua", "toml", "lisp", ""}


@dataclass(frozen=True)
class Fence:
    """A fenced block: its kind, text and place."""

    page: Path
    line: int
    info: str
    text: str

    @property
    def kind(self) -> str:
        return self.info.split(" ")[0]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_fences(page: Path) -> list[Fence]:
    """Return the fences of a page in order."""
    fences: list[Fence] = []
    start, info, lines = 0, "", list[str]()
    for number, line in enumerate(page.read_text("utf-8").split("\n"), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif start:
            fences.append(Fence(page, start, info, "\n".join(lines) + "\n"))
            start = 0
        else:
            start, info, lines = number, line[3:].strip(), []
    assert not start, f"{page.name}:{start} is never closed"
    return fences


ALL = [fence for page in PAGES for fence in read_fences(page)]


def fences(*kinds: str) -> list[Any]:
    return [pytest.param(fence, id=str(fence)) for fence in ALL if fence.kind in kinds]


def followed(kind: str, by: str, start: str = "") -> list[Any]:
    """Return pairs of a fence and the next one."""
    pairs = itertools.pairwise(ALL)
    return [
        pytest.param(a, b, id=str(b))
        for a, b in pairs
        if a.kind in kind.split() and b.kind == by and a.page == b.page and b.text.startswith(start)
    ]


def framed(fence: Fence) -> str:
    """Return the sample as a complete spec."""
    if fence.kind == "cnn" or re.search(r"^(network|input|extends)\b", fence.text, re.M):
        return fence.text
    image = re.match(r"# input ([0-9x]+)\n", fence.text)
    header = HEADER.format(image.group(1) if image else "3x32x32")
    return (header if "classes" in fence.text else header.replace("classes 10", "")) + fence.text


def compiled(fence: Fence, name: str = "sample.cnn") -> Compilation:
    return compile_source(Source(name, framed(fence)))


def described(done: Compilation) -> str:
    return "\n\n".join(render(diagnostic) for diagnostic in done.diagnostics)


# --- samples -------------------------------------------------------------------------------------


def test_there_are_samples() -> None:
    assert {fence.kind for fence in ALL if not fence.kind.startswith("{")} <= FENCES
    assert sum(fence.kind in ("cnn", "cnn-part") for fence in ALL) > 25
    assert sum(fence.kind == "cnn-error" for fence in ALL) > 5


@pytest.mark.parametrize("fence", fences("cnn", "cnn-part"))
def test_sample_checks(fence: Fence) -> None:
    done = compiled(fence)
    assert not done.diagnostics, described(done)
    assert done.graph is not None


def test_reported_image_sizes_are_those_of_the_networks() -> None:
    """Compare `# accepts ...` at the end of samples, and the table of reports, with what the check prints."""
    samples = [
        (fence.text.rsplit("# accepts ", 1)[1].strip(), framed(fence)) for fence in ALL if "# accepts " in fence.text
    ]
    table = (DOCS / "reference/language/sizes.md").read_text("utf-8")
    rows = re.findall(r"^\| ``(.*?)`` \| `(.*?)` \|", table, re.MULTILINE)
    samples += [(report, f"input 3x32x32\n{layers}") for report, layers in rows]
    assert len(rows) == 5
    assert len(samples) > 7
    for report, text in samples:
        assert cnnspec.loads(text).sizes.words() == report


@pytest.mark.parametrize("fence", fences("cnn-error"))
def test_sample_fails(fence: Fence) -> None:
    done = compiled(fence)
    assert sorted(d.code for d in done.diagnostics) == sorted(fence.info.split()[1:]), described(done)


@pytest.mark.parametrize("fence", fences("cnn", "cnn-part", "cnn-error"))
def test_sample_is_formatted(fence: Fence) -> None:
    try:
        formatted = api.format(fence.text)
    except CnnspecError:
        assert fence.kind == "cnn-error"
        return
    assert formatted == fence.text


@pytest.mark.parametrize(("fence", "shown"), followed("cnn-error", "text", "error["))
def test_shown_error_is_what_is_printed(fence: Fence, shown: Fence) -> None:
    place = re.search(r"--> ([^:\n]+)", shown.text)
    assert place is not None
    assert described(compiled(fence, place.group(1))) + "\n" == shown.text


@pytest.mark.parametrize(("fence", "shown"), followed("cnn cnn-part", "keys"))
def test_shown_keys_are_those_of_the_module(fence: Fence, shown: Fence) -> None:
    graph = compiled(fence).require_graph()
    keys = " ".join(key for node in graph for key in node.parameters)
    parts = [re.escape(" ".join(part.split())) for part in re.split(r"^\.\.\.$", shown.text, flags=re.M)]
    assert re.fullmatch(r"(?: |\b).*(?: |\b)".join(parts).replace(r"\ ", " "), keys), keys


@pytest.mark.parametrize("fence", [p for p in fences("python") if p.values[0].info == "python run"])
def test_script_runs(fence: Fence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(fence.text, str(fence), "exec"), {"__name__": "__main__"})
    following = [b for a, b in itertools.pairwise(ALL) if a is fence and b.kind == "text" and b.page == a.page]
    if following:
        assert printed.getvalue() == following[0].text


COMMANDS = [
    pytest.param(shlex.split(line, comments=True)[1:], id=f"{fence}: {line[:40]}")
    for fence in ALL
    if fence.kind == "sh"
    for line in fence.text.replace("\\\n", "").splitlines()
    if line.startswith("cnnspec ") and "..." not in line and not re.search(r"\b[A-Z]{2,}\b", line)
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 30
    assert sum(fence.info == "text output" for fence in ALL) >= 3


@pytest.mark.parametrize("arguments", COMMANDS)
def test_shown_command_exists_with_its_options(arguments: list[str]) -> None:
    commands: Any = typer.main.get_command(cli.app)
    if arguments[0] in commands.commands:
        command = commands.commands[arguments[0]]
        given = command.make_context(arguments[0], [a for a in arguments[1:] if a not in "|>"]).params
        for file in given.get("files") or [given.get("file", "none.cnn")]:
            assert "." in file or "/" in file or file in shipped_specs(), file
    else:
        assert arguments[0] in ("--version", "--help"), arguments[0]


@pytest.mark.parametrize(("fence", "shown"), [p for p in followed("sh", "text") if p.values[1].info == "text output"])
def test_shown_output_is_that_of_the_command(fence: Fence, shown: Fence, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    command = [sys.executable, "-m", *shlex.split(fence.text)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    printed = iter(line.rstrip() for line in done.stdout.splitlines())
    for line in shown.text.splitlines():
        if line != "...":
            assert line in printed, f"not in the output, or not in this order: {line!r}"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    assert len(path.read_text("utf-8").splitlines()) <= 60
    # As a user would start it, from another folder; what would be downloaded lies there already, with random weights.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TORCH_HOME": str(tmp_path)}
    work = tmp_path / "work"
    work.mkdir()
    if "torchvision:" in path.read_text("utf-8"):
        models = pytest.importorskip("torchvision.models")
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        file = Path(models.ResNet18_Weights.DEFAULT.url).name
        torch.save(models.resnet18().state_dict(), tmp_path / "hub" / "checkpoints" / file)
    runner = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if "_test_" in path.name else []
    done = subprocess.run(
        [sys.executable, *runner, str(path)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert all(f'"{left.name}"' in path.read_text("utf-8") for left in work.glob("[!.]*"))


def test_network_of_the_tutorial_trains(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    tutorial = [fence for fence in ALL if fence.page == DOCS / "tutorial.md"]
    script = next(fence.text for fence in tutorial if fence.info == "python run")
    spec = next(fence.text for fence in tutorial if fence.kind == "cnn" and "train {" in fence.text)
    steps = [line for fence in tutorial if fence.kind == "sh" for line in fence.text.splitlines()]
    train, test = "cnnspec build shapes.cnn --train", next(line for line in steps if line.startswith("cnnspec test"))
    assert train in steps
    (tmp_path / "draw.py").write_text(script, "utf-8")
    (tmp_path / "shapes.cnn").write_text(spec, "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    for step in (["draw.py"], ["-m", *train.split(), "--epochs", "1"], ["-m", *test.split()]):
        command = [sys.executable, *step]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "runs" / "shapes" / "1" / "result.json").read_text("utf-8"))
    assert result["state"] == "finished"


# --- nothing is left out -------------------------------------------------------------------------


def typed(parameter: Parameter) -> str:
    """A parameter as the tables of the reference show it: `stride: size = 1x1`."""
    kind: Type = parameter.type
    words = "/".join(kind.words)
    named = {"interval": "range", "word": words, "init": "scheme", "numbers": "list"}.get(kind.kind, kind.kind)
    if kind.words and kind.kind not in {"word", "init"}:
        named += f"/{words}"
    if parameter.required or parameter.default == ():
        return f"`{parameter.name}: {named}`"
    if parameter.default is None:
        return f"`{parameter.name}: {named}?`"
    default = re.sub(r"e([+-])0", r"e\1", shown(parameter))
    return f"`{parameter.name}: {named} = {default}`"


def shown(parameter: Parameter) -> str:
    """The default as a spec writes it; a word stands without quotes."""
    return parameter.default if parameter.type.words and isinstance(parameter.default, str) else show(parameter.default)


def told(parameters: Any) -> str:
    return ", ".join(typed(parameter) for parameter in parameters.values()) or "none"


def operator_rows() -> Iterator[str]:
    for name, kind in OPS.items():
        yield f"| `{name}` | {told(kind.parameters)} | {kind.torch.removeprefix('torch.nn.')} | "


def choice_rows() -> Iterator[str]:
    for table in (INITS, *CHOICES.values()):
        for name, kind in table.items():
            yield f"| `{name}` | {told(kind.parameters)} | "


def scalar_rows() -> Iterator[str]:
    for parameter in Scalars.parameters.values():
        default = "none" if parameter.default is None else f"`{shown(parameter)}`"
        kind = "/".join(parameter.type.words) or parameter.type.kind
        yield f"| `{parameter.name}` | `{kind}` | {default} | "


def block_rows() -> Iterator[str]:
    for name in standard_blocks():
        found = standard_block(name)
        if found is not None:
            source = found[0].source.text
            spans = [parameter.span for parameter in found[1].parameters]
            yield f"| `{name}` | {', '.join(f'`{source[span.start : span.end]}`' for span in spans)} | "


@pytest.mark.parametrize("rows", [operator_rows, choice_rows, scalar_rows, block_rows], ids=lambda rows: rows.__name__)
def test_tables_of_the_reference_are_complete(rows: Any) -> None:
    missing = [row for row in rows() if not any(line.startswith(row) for line in LANGUAGE.split("\n"))]
    assert not missing, "rows that docs/reference/language must have:\n" + "\n".join(missing)


def test_multiply_adds_are_counted_as_the_reference_says() -> None:
    section = LANGUAGE.partition("### Multiply-adds")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
    assert [*rows] == [name for name, kind in OPS.items() if kind.macs is not Op.macs]
    layers = (
        "conv 3x2 6 pad=1 groups=2 bias | conv_transpose 2x3 8 stride=2 groups=2 bias | channel_conv 3 | relu | bn",
        "blurpool 3 stride=2 | conv 3x1 16 depthwise | linear 5 pointwise | flatten | linear 7",
    )
    graph = loads("input 4x9x8\n" + "\n".join(layers))
    for node in graph.nodes:
        op: Any = node.op
        x, y = (*graph.input_shapes(node)[0], 1, 1), (*node.shape, 1, 1)
        formulas = re.findall(r"`([^`]*[*][^`]*)`", rows.get(op.name, "`0 * C`"))
        formula = (
            formulas[-1 if getattr(op, "pointwise", False) else 0].replace("'", "_out").replace("kernel.", "kernel_")
        )
        values = {**dict(zip(("C", "H", "W"), x, strict=False)), **dict(zip(("c", "H_out", "W_out"), y, strict=False))}
        kernel = getattr(op, "kernel", None)
        if isinstance(kernel, tuple):
            values |= {"kernel_h": kernel[0], "kernel_w": kernel[1]}
        values |= {"groups": op.group_count(x) if op.name == "conv" else getattr(op, "groups", 1)}
        assert eval(formula, {"kernel": kernel, **values}) == node.macs, op.name
    assert {node.op.name for node in graph.nodes if node.macs} == {*rows}


def test_every_word_of_the_grammar_is_in_the_reference() -> None:
    grammar = (ROOT / "grammar" / "cnn.lark").read_text("utf-8")
    patterns = re.findall(r"/\(?([a-z|]+)\)?(?:\(\?!|\\b)", grammar)
    words = {word for pattern in patterns for word in pattern.split("|")} | set(JOINS)
    assert len(words) > 30
    assert sorted(word for word in words if f"`{word}" not in LANGUAGE) == []


def test_every_function_and_metric_is_in_the_reference() -> None:
    from cnnspec.ir.evaluate import _FUNCTIONS
    from cnnspec.semantics.sections import _METRICS

    assert sorted(name for name in _FUNCTIONS if f"`{name}(" not in LANGUAGE) == []
    assert sorted(name for name in (*_METRICS, "output.NAME") if f"| `{name}` |" not in LANGUAGE) == []


def test_every_limit_is_in_the_reference() -> None:
    section = (DOCS / "reference" / "language" / "limits.md").read_text("utf-8").replace(",", "")
    elsewhere = {"MAX_FILE_BYTES": f"{limits.MAX_FILE_BYTES // 1024} KiB"}
    for name, limit in vars(limits).items():
        if name.startswith("MAX_"):
            assert re.search(rf"\b{elsewhere.get(name, limit)}\b", section), name


def test_every_code_is_in_the_reference() -> None:
    sources = Path(cnnspec.__file__).parent.rglob("*.py")
    used = {code for path in sources for code in re.findall(r"\"([EW]0[0-9]{3})\"", path.read_text("utf-8"))}
    page = (DOCS / "reference" / "errors.md").read_text("utf-8")
    listed = set(re.findall(r"^\| \[`([EW]0[0-9]{3})`\]\(\.\./errors/\1\.md\) \|", page, re.M))
    assert listed == used


def test_every_lint_is_in_the_page_of_diagnostics() -> None:
    page = (DOCS / "reference" / "diagnostics.md").read_text("utf-8")
    lints = {path.stem for path in (DOCS / "errors").glob("W*.md")}
    assert set(re.findall(r"^\| `(W[0-9]{4})` \|", page, re.M)) == lints


def test_specs_of_the_readme_are_shipped() -> None:
    named = README.split("For CIFAR-10 there are ")[1].split(". ")[0]
    names = re.findall(r"`(\w+)`", named)
    assert len(names) == 8
    assert set(names) <= set(shipped_specs())
    assert f"```cnn\n{(ROOT / 'specs' / 'resnet20.cnn').read_text('utf-8')}```\n" in README


def test_every_option_is_in_the_page_of_the_command_line() -> None:
    page = (DOCS / "reference" / "cli.md").read_text("utf-8")
    sections = dict(re.findall(r"^## `cnnspec ([a-z]+)`\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    commands: Any = typer.main.get_command(cli.app)
    assert set(commands.commands) == set(sections)
    for name, command in commands.commands.items():
        options = [o for parameter in command.params for o in (*parameter.opts, *parameter.secondary_opts)]
        for option in options:
            if option.startswith("--") and option != "--help":
                assert re.search(rf"`{option}[ `]", sections[name]), f"{option} of {name}"


def test_messages_name_options_that_exist() -> None:
    commands: Any = typer.main.get_command(cli.app)
    parameters = [parameter for command in commands.commands.values() for parameter in command.params]
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    for path in sorted((ROOT / "cnnspec").rglob("*.py")):
        named = set(re.findall(r"`(?:cnnspec [a-z]+ [^`\n]*?)?(--[a-z][a-z-]*)", path.read_text("utf-8")))
        assert named <= options, path


def test_every_name_of_the_package_is_in_the_page_of_the_api() -> None:
    pages = "\n".join(path.read_text("utf-8") for path in (DOCS / "reference" / "api").glob("*.md"))
    documented = re.findall(r"^\.\. auto(?:function|class|data):: (?:cnnspec\.)?(\w+)(?:\(\))?$", pages, re.M)
    assert len(set(documented)) == len(documented)
    assert {*cnnspec.__all__, *training.__all__, *testing.__all__} <= set(documented)


def test_figures_of_the_readme_are_those_of_the_specs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([0-9,]+) \| ([0-9.]+) \|", README, re.M)
    assert len(rows) == 4
    for name, parameters, mmacs in rows:
        graph = cnnspec.load(name)
        assert (f"{graph.parameter_count:,}", f"{graph.macs / 1e6:.2f}") == (parameters, mmacs)


def test_the_architecture_names_every_package_once() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "cnnspec").rglob("*.py")} - {Path("cnnspec")}
    rows = re.findall(r"^\|[^|]*\| `(cnnspec\.[a-z0-9_.]+)` \|", page, re.M)
    assert sorted(rows) == sorted(".".join(folder.parts) for folder in folders)


def test_the_architecture_names_nothing_that_is_not_there() -> None:
    """Files by their path, from the root or from the package."""
    for page in ("ARCHITECTURE.md", "CONTRIBUTING.md"):
        named = set(re.findall(r"`([\w/]*\w(?:/|\.py|\.lark|\.md|\.toml|\.txt))`", (ROOT / page).read_text("utf-8")))
        assert len(named) > 5
        roots = (ROOT, ROOT / "cnnspec", ROOT / "cnnspec" / "backends", ROOT / "cnnspec" / "ops")
        placeholders = ("CODE", "NAME")
        missing = [
            n for n in named if not any((r / n).exists() for r in roots) and not any(w in n for w in placeholders)
        ]
        assert sorted(missing) == [], page


def test_the_tests_named_for_contributors_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    sources = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("*.py"))
    named = set(re.findall(r"\b(test_\w+)\b(?!\.py|/)", page))
    assert len(named) > 5
    assert sorted(name for name in named if f"def {name}(" not in sources) == []


def test_no_page_holds_a_placeholder() -> None:
    assert [page.name for page in PAGES if re.search(r"%%(?!cnn)|TODO|FIXME|XXX", page.read_text("utf-8"))] == []


def test_links_lead_somewhere() -> None:
    errors = sorted((DOCS / "errors").glob("*.md"))
    own = (ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING", "SECURITY"))
    for page in [*PAGES, *errors, *own]:
        prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
        for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^):]*))?\)", prose):
            other = page.parent / target if target else page
            assert other.exists(), f"{page.relative_to(ROOT)}: {target}"
            assert not anchor or anchor in anchors(other), f"{page.relative_to(ROOT)}: {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
