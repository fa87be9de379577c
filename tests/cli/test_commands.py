"""The command line as a user meets it: output, exit codes, and nothing half-written."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cnnspec import CnnspecError, loads
from cnnspec.analysis.summary import COLUMNS, KEYS, summarize
from cnnspec.cli.app import make_command
from cnnspec.cli.options import grid
from cnnspec.cli.tables import print_summary
from cnnspec.cli.training_options import Training, find_data
from cnnspec.compiler import compile_file
from cnnspec.resources import resource

HEAD = "network t\ninput 3x32x32\nclasses 10\n"
GOOD = HEAD + "stem conv 3x3 16 | bn | relu\nhead global_avgpool | flatten | linear classes\n"


def cnnspec(*args: object, cwd: Path | None = None, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cnnspec", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd or Path(__file__).parents[2], input=text)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.cnn"
    path.write_text(GOOD)
    return path


def test_check_of_all_that_ships() -> None:
    files = [*resource("specs").glob("*.cnn"), *resource("specs").glob("blocks/*.cnn")]
    done = cnnspec("check", *files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": ok") == len(files) >= 19
    assert done.stderr == ""


def test_check_tells_figures_and_json(good: Path) -> None:
    assert "[N, 3, 32, 32] -> [N, 10]" in cnnspec("check", good).stdout
    data = json.loads(cnnspec("check", "--json", good, "resnet20").stdout)
    assert data["version"] == 1
    assert [file["ok"] for file in data["files"]] == [True, True]
    assert data["files"][1]["parameters"] == 272378


def test_check_goes_on_behind_a_bad_file(good: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.cnn"
    bad.write_text(HEAD + "stem cnv 3x3 16\n")
    done = cnnspec("check", bad, good, tmp_path / "missing.cnn")
    assert done.returncode == 1
    assert "error[E0201]: unknown operator or block `cnv`" in done.stderr
    assert "did you mean `conv`?" in done.stderr
    assert "error[E0212]" in done.stderr
    assert "good.cnn: ok" in done.stdout
    report = json.loads(cnnspec("check", "--json", bad).stdout)["files"][0]
    assert report["ok"] is False
    fault = report["diagnostics"][0]
    assert (fault["code"], fault["line"], fault["column"]) == ("E0201", 4, 6)


@pytest.mark.parametrize("command", ["check", "summary", "show", "build", "fmt"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF\x00\x01", b"\xff\xfe\xfd", b"add {\n conv", b"network t\ninput 3x8x8\nstem conv 9x9 4 pad=0\n"],
    ids=["empty", "binary", "not-utf8", "open-brace", "too-large"],
)
def test_bad_files_end_with_an_error(command: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.cnn"
    path.write_bytes(content)
    done = cnnspec(command, path, cwd=tmp_path)
    formattable = command == "fmt" and content in (b"", b"network t\ninput 3x8x8\nstem conv 9x9 4 pad=0\n")
    assert done.returncode == (0 if formattable else 1), done.stderr
    assert "Traceback" not in done.stderr
    assert formattable or "error[E" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.cnn"]
    assert path.read_bytes() == content


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "folder.cnn").mkdir()
    for name in ("folder.cnn", "missing.cnn", "x" * 300):
        done = cnnspec("check", tmp_path / name)
        assert done.returncode == 1
        assert "error[E0212]" in done.stderr


def test_fmt(tmp_path: Path) -> None:
    path = tmp_path / "messy.cnn"
    path.write_bytes(b"network   t\r\ninput 3x32x32 # image\r\n\r\n\r\nstem conv 3x3   c=16|bn\r\n")
    before = path.read_bytes()
    check = cnnspec("fmt", "--check", path)
    assert (check.returncode, path.read_bytes()) == (1, before)
    diff = cnnspec("fmt", "--diff", path)
    assert diff.returncode == 1
    assert "+stem conv 3x3 c=16 | bn" in diff.stdout
    assert path.read_bytes() == before
    assert cnnspec("fmt", path).returncode == 0
    assert path.read_text() == "network t\ninput 3x32x32  # image\n\nstem conv 3x3 c=16 | bn\n"
    assert cnnspec("fmt", "--check", path).returncode == 0
    assert cnnspec("fmt", "-", text="relu|relu\n").stdout == "relu | relu\n"
    assert cnnspec("fmt", "-", text="\ufeffrelu|relu\n").stdout == "relu | relu\n"
    assert cnnspec("fmt", "--check", "resnet20").returncode == 0
    shipped = cnnspec("fmt", "resnet20")
    assert shipped.returncode == 1
    assert "`resnet20` is a shipped spec and cannot be formatted in place" in shipped.stderr


def test_summary(good: Path) -> None:
    data = json.loads(cnnspec("summary", "resnet20", "--json").stdout)
    assert (data["parameters"], data["macs"], data["depth"]) == (272378, 40813184, 20)
    modules = {module["path"]: module for module in data["modules"]}
    assert modules["stage2.0.downsample"]["parameters"] == 16 * 32 + 32
    assert modules["stage1"]["parameters"] == sum(modules[f"stage1.{i}"]["parameters"] for i in range(3))
    assert modules["stage3"]["output_shape"] == [64, 8, 8]
    text = cnnspec("summary", "resnet20", "--set", "n=5").stdout
    assert "466,810" in text
    assert "\x1b" not in text


def test_summary_shows_what_is_asked_for() -> None:
    text = cnnspec(
        "summary", "resnet20", "--columns", "macs,saved,peak,field,center_field,stride,depth", "--depth", 1
    ).stdout
    head, *rest = [line.split() for line in text.splitlines() if line.strip()][1:]
    assert head == ["module", "MACs", "saved", "peak", "field", "center", "field", "stride", "depth"]
    stage3 = next(line for line in rest if line[0] == "stage3")
    assert stage3[-4:] == ["81x81", "32x32", "4x4", "19"]
    done = cnnspec("summary", "resnet20", "--format", "csv", "--batch", 8, "--columns", "flops,backward_flops,saved")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    total = rows[-1]
    assert (total["module"], total["flops"]) == ("total", str(8 * 2 * 40813184))
    assert int(total["flops"]) < int(total["backward_flops"]) < 2 * int(total["flops"])
    options = ("--format", "markdown", "--columns", "kind,parameters")
    markdown = cnnspec("summary", "resnet20", *options).stdout.splitlines()
    assert markdown[:2] == ["| module | kind | parameters |", "| --- | --- | --: |"]
    assert markdown[-1] == "| total |  | 272,378 |"
    *_, total, empty, largest = cnnspec(
        "summary", "resnet20", "--format", "markdown", "--max-batch", "1GiB"
    ).stdout.splitlines()
    assert (total[:7], empty, largest[:22]) == ("| total", "", "largest training batch")


NAMED = """\
input 3x32x24
stem conv 3x3 16 stride=2
b: { deep: conv 3x3 8 | relu }
output b from @stem
output maps.0 from @b
"""


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("text", [NAMED, NAMED.partition("output")[0]], ids=["outputs", "one output"])
def test_all_formats_of_a_summary_show_the_same(
    text: str, column: str, symbolic: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    done = summarize(loads(text), 2, symbolic=symbolic)
    outputs = ["b", "maps.0"] if "output" in text else []
    markdown = [line[2:-2].split(" | ") for line in done.to_markdown([column], 1).splitlines()[2:]]
    assert [name for name, _ in markdown] == ["`stem`", "`b`", *(f"`{name}`" for name in outputs), "total"]
    print_summary(done, 1, [column])
    lines = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()[4:-1] if line]
    assert [[name.strip("`"), *([cell] if cell else [])] for name, cell in markdown] == lines
    _, *rows = csv.reader(io.StringIO(done.to_csv([column], 1)))
    data = done.to_json([column], 1)
    plain = [*data["modules"], *data.get("outputs", []), data]
    assert [row["path" if "path" in row else "name"] for row in plain[:-1]] == [name for name, _ in rows[:-1]]
    key = KEYS.get(column, column)
    for (name, cell), (_, shown), row in zip(rows, markdown, plain, strict=True):
        assert (cell == "") == (shown == ""), name
        if column in ("activations", "saved", "peak"):
            assert cell == str(row.get(key, "")), name
        else:
            assert cell == (shown.replace(",", "") if COLUMNS[column].figure else shown), name
        if column != "kind" and (row is not data or column != "output"):
            assert (row.get(key) is None) == (cell == ""), name


def test_nothing_of_a_table_is_cut_off() -> None:
    columns = ",".join(COLUMNS)
    for options in (("resnet20", "--columns", columns), ("resnet50", "--symbolic"), ("densenet121", "--symbolic")):
        text = cnnspec("summary", *options).stdout
        assert "…" not in text
        assert text.splitlines()[2].split()[0] == "module"
    title, _, head, *_ = cnnspec("summary", "resnet20", "--columns", "depth").stdout.splitlines()
    assert title == "resnet20: [N, 3, 32, 32] -> [N, 10]"
    assert head.split() == ["module", "depth"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_a_narrow_terminal_folds_cells_between_words(columns: str) -> None:
    import pty

    main, other = pty.openpty()
    command = [sys.executable, "-m", "cnnspec", "summary", "resnet20", "--depth", "1"]
    env = {
        **os.environ,
        "COLUMNS": columns,
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    run = subprocess.Popen(command, stdout=other, env=env)
    os.close(other)
    parts: list[bytes] = []
    try:
        while part := os.read(main, 65536):
            parts.append(part)
    except OSError:
        pass  # the other side is closed
    os.close(main)
    assert run.wait() == 0
    words = b"".join(parts).decode().split()
    assert {"module", "stage3", "205,632", "13,107,200", "81x81", "272,378", "40,813,184"} <= set(words)


def test_summary_as_data() -> None:
    data = json.loads(cnnspec("summary", "googlenet_cifar", "--format", "json", "--max-batch", "2GiB").stdout)
    assert data["flops"] == 2 * data["macs"]
    assert data["training_flops"] == data["flops"] + data["backward_flops"]
    assert data["saved_bytes"] > data["peak_bytes"]
    largest = data["max_batch"]
    assert largest["total"] <= largest["memory"] == 2 * 2**30
    assert largest["batch"] > 1
    assert (
        cnnspec("summary", "googlenet_cifar", "--json").stdout
        == cnnspec("summary", "googlenet_cifar", "--format", "json").stdout
    )
    data = json.loads(cnnspec("summary", "resnet20", "--json", "--columns", "kind,saved", "--depth", "1").stdout)
    assert data["modules"][0] == {"path": "stem", "kind": "", "saved_bytes": 131200}
    assert [module["path"] for module in data["modules"]] == ["stem", "stage1", "stage2", "stage3", "head"]
    assert "macs" not in data
    assert "declared" not in data


def test_the_largest_batch_in_words() -> None:
    assert (
        "largest training batch that fits into 1.86 GiB: 1"
        in cnnspec("summary", "resnet20", "--max-batch", "2 GB").stdout
    )
    assert (
        "a batch of 1 does not fit into 1.0 KiB: it needs "
        in cnnspec("summary", "resnet20", "--max-batch", "1kib").stdout
    )
    done = cnnspec("summary", "resnet20", "--max-batch", "2GB", "--format", "csv")
    assert "largest training batch" in done.stderr
    assert "largest training batch" not in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        ("--columns", "macs,speed"),
        ("--columns", "macs, macs"),
        ("--columns", ""),
        ("--format", "html"),
        ("--batch", "0"),
        ("--max-batch", "16"),
        ("--max-batch", "16 elephants"),
        ("--max-batch", "-1GB"),
        ("--max-batch", "1e400GB"),
    ],
    ids=" ".join,
)
def test_summary_refuses(options: tuple[str, str]) -> None:
    done = cnnspec("summary", "resnet20", *options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert options[0] in done.stderr


def test_show(good: Path) -> None:
    for stage in ("tree", "model", "graph"):
        assert cnnspec("show", good, "--stage", stage).stdout
        assert json.loads(cnnspec("show", good, "--stage", stage, "--json").stdout)
    assert cnnspec("show", good, "--stage", "soup").returncode == 2


def test_list() -> None:
    listing = json.loads(cnnspec("list", "--json").stdout)
    assert {"resnet20", "preact_resnet20", "googlenet_cifar", "densenet_cifar", "resnet110"} <= set(listing["specs"])
    assert {"resnet_block", "preact_bottleneck", "squeeze_excite"} <= set(listing["blocks"])
    assert "conv" in listing["operators"]
    assert sorted(name for names in listing["families"].values() for name in names) == sorted(listing["specs"])
    assert all(len(line) <= 80 for line in cnnspec("list").stdout.splitlines())
    assert list(json.loads(cnnspec("list", "dpn", "--json").stdout)["specs"]) == listing["families"]["dpn"]
    described = cnnspec("list", "vgg").stdout
    assert "VGG-16" in described
    assert all(len(line) <= 80 for line in described.splitlines())
    done = cnnspec("list", "vggs")
    assert (done.returncode, "did you mean `vgg`?" in done.stderr) == (2, True)


def test_settings() -> None:
    assert cnnspec("check", "resnet20", "--set", "n=2").returncode == 0
    for wrong in ("m=2", "n=2.5", "n=in.c", "n=relu", "n=0", "n=9999999999999999999999"):
        done = cnnspec("check", "resnet20", "--set", wrong)
        assert done.returncode == 1, wrong
        assert "error[E0" in done.stderr
        assert "Traceback" not in done.stderr
    assert cnnspec("check", "resnet20", "--set", "n").returncode == 2
    for wrong, why in (
        ("lr=1e30", "exceeds the limit"),
        ("n=1/0", "division by zero"),
        ("n=m+1", "unknown name `m`"),
    ):
        assert why in cnnspec("check", "resnet20", "--set", wrong).stderr


def test_a_grid_of_settings() -> None:
    given = [
        "residual=true, false",
        "optimizer.lr=0.1,1e-2",
        "c=16",
        "at=[1, 2],[3,4]",
        'name="a,b","c"',
        "scale=max(1, 2),(3)",
    ]
    assert grid(given) == {
        "residual": ["true", "false"],
        "optimizer.lr": ["0.1", "1e-2"],
        "c": ["16"],
        "at": ["[1, 2]", "[3,4]"],
        "name": ['"a,b"', '"c"'],
        "scale": ["max(1, 2)", "(3)"],
    }
    assert grid(None) == {}
    for wrong in (["c=1,,2"], ["c=1,"], ["c=1, 1"], ["c=1", "c=2"], ["c"], ["c="], ["1c=2"]):
        with pytest.raises(typer.BadParameter):
            grid(wrong)


def test_training_options_are_fields_with_the_same_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.delenv("CNNSPEC_DATA", raising=False)
    from cnnspec.training import TrainOptions

    assert Training().given() == []
    assert Training(plots=False, save_every=0, log=["wandb"]).given() == ["--save-every", "--log", "--no-plots"]
    assert Training().options([]) == TrainOptions()
    assert Training(epochs=3, threads=2).options([], plots=False) == TrainOptions(epochs=3, threads=2, plots=False)


@pytest.mark.parametrize("option", ["--epochs=3", "--save-every=0", "--no-plots", "--resume", "--strategy=ddp"])
def test_training_options_need_train(good: Path, option: str) -> None:
    done = cnnspec("build", good, option)
    assert done.returncode == 2
    assert f"Invalid value for {option.partition('=')[0]}: has no effect without --train" in done.stderr


def test_usage_errors_exit_with_2() -> None:
    assert cnnspec("chekc", "resnet20").returncode == 2
    assert cnnspec("check", "--frobnicate").returncode == 2
    assert cnnspec("build", "resnet20", "--epochs", "3").returncode == 2


def test_build_tries_the_module_out(good: Path) -> None:
    pytest.importorskip("torch")
    done = cnnspec("build", good)
    assert done.returncode == 0, done.stderr
    assert "forward and backward pass on (2, 3, 32, 32): ok" in done.stdout


def test_a_wrong_data_set_is_refused_before_training(good: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    wide = tmp_path / "wide.cnn"
    wide.write_text(GOOD.replace("classes 10", "classes 100"))
    cases = {
        "E0501": ["build", wide, "--train", "--data", "fashion_mini"],
        "E0502": ["build", good, "--train", "--data", "cifra10"],
    }
    for code, args in cases.items():
        done = cnnspec(*args, cwd=tmp_path)
        assert done.returncode == 1
        assert f"error[{code}]" in done.stderr
        assert not (tmp_path / "runs").exists()
    done = cnnspec(
        "build", good, "--train", "--data", "cifar10", "--offline", "--data-dir", tmp_path / "none", cwd=tmp_path
    )
    assert done.returncode == 1
    for remedy in ("--data fashion_mini", "--data-dir", "--data folder"):
        assert remedy in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.cnn", "wide.cnn"]


def test_show_of_a_text_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "bad.cnn"
    path.write_text(HEAD + "stem conv 3x3, 16 | bn\nstage conv 3x3 in.d\n")
    for stage in ("tree", "model", "graph"):
        done = cnnspec("show", path, "--stage", stage)
        assert done.returncode == 1
        assert done.stdout == ""
        assert [line.split(":")[0] for line in done.stderr.splitlines() if line.startswith("error")] == [
            "error[E0101]",
            "error[E0207]",
        ]


def test_lints_are_told_by_check_alone(tmp_path: Path) -> None:
    path = tmp_path / "net.cnn"
    path.write_text(GOOD.replace("16 |", "16 bias |"))
    done = cnnspec("check", path)
    assert done.returncode == 0
    assert "warning[W0106]" in done.stderr
    assert "net.cnn: ok" in done.stdout
    assert cnnspec("summary", path).stderr == ""


def test_a_summary_in_formulas() -> None:
    done = cnnspec(
        "summary", "resnet20", "--symbolic", "--depth", "1", "--columns", "output,macs,saved", "--format", "csv"
    )
    lines = done.stdout.splitlines()
    assert lines[2].startswith('stage1,"[N, 16, H, W]",13824*H*W,')
    assert lines[4].startswith('stage3,"[N, 64, (H + 3)//4, (W + 3)//4]",')
    assert lines[-1].split(",")[-2].endswith(" + 640")
    data = json.loads(cnnspec("summary", "resnet20", "--symbolic", "--json").stdout)
    assert data["input_shape"] == [3, "H", "W"]
    assert data["declared"] == {
        "input_shape": [3, 32, 32],
        "figures": ["peak_bytes", "field", "center_field", "stride"],
    }
    assert data["parameters"] == 272_378
    assert "(H + 3)//4" in cnnspec("summary", "resnet20", "--symbolic").stdout


@pytest.mark.parametrize(
    "text", ["folder:a b/c", "folder a b/c", 'folder "a b/c"', 'folder:"a b/c"', ' folder "a b/c" ']
)
def test_a_folder_is_named_as_in_a_spec_or_with_a_colon(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b" / "c").mkdir(parents=True)
    found = find_data([], text, None)
    assert (found.name, found.args["path"]) == ("folder", "a b/c")


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "resnet20", "--train", "--data", "folder:missing"],
        ["build", "FILE", "--train"],
        ["plan", "resnet20", "--data", "folder:missing"],
        ["test", "resnet20", "--weights", "missing.pt"],
        ["test", "resnet20", "--weights", "FILE"],
        ["test", "resnet20", "--weights", "w.pt", "--data", "folder:missing"],
        ["build", "resnet20", "--weights", "missing.safetensors"],
        ["match", "resnet20", "missing.pt"],
    ],
    ids=" ".join,
)
def test_paths_are_checked_before_torch_is_imported(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "net.cnn"
    file.write_text('input 3x8x8\nclasses 2\nhead flatten | linear classes\ntrain { data folder "missing" }\n')
    (tmp_path / "w.pt").write_bytes(b"")
    words = [str(file) if word == "FILE" else word for word in arguments]
    code = """import sys
from cnnspec.cli import main
try:
    main()
finally:
    print('torch' in sys.modules)"""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout.strip()) == (1, "False"), done.stderr
    assert "error[E050" in done.stderr


# --- conventions ----------------------------------------------------------------------------------


def test_folders_mean_the_specs_below_them(good: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a" / ".hidden" / "x.cnn").write_text("broken {")
    (tmp_path / "a" / "block.cnn").write_text("block b(c) {\n    conv 3x3 c\n}\n")
    (tmp_path / "a" / "resnet20").mkdir()
    (tmp_path / "a" / "resnet20" / "net.cnn").write_text(GOOD.replace(" | ", "|"))
    done = cnnspec("check", "a", "good.cnn", cwd=tmp_path)
    assert done.returncode == 0
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        str(Path("a", "block.cnn")), str(Path("a", "resnet20", "net.cnn")), "good.cnn",
    ]  # fmt: skip
    done = cnnspec("summary", "a", "good.cnn", "--json", cwd=tmp_path)
    assert [entry["name"] for entry in json.loads(done.stdout)] == ["t", "t"]
    assert "block.cnn: blocks only: `b`" in done.stderr
    assert cnnspec("summary", "a", "missing.cnn", cwd=tmp_path).returncode == 1
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "one.cnn").write_text("block b(c) {\n    conv 3x3 c\n}\nblock d() { relu }\n")
    (tmp_path / "blocks" / "two.cnn").write_text("block e() {\n    bn\n}\n")
    done = cnnspec("summary", "blocks", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["blocks/one.cnn: blocks only: `b`, `d`", "blocks/two.cnn: blocks only: `e`"]
    done = cnnspec("summary", "blocks", "--json", cwd=tmp_path)
    assert (json.loads(done.stdout), done.stderr.count("blocks only")) == ([], 2)
    assert cnnspec("fmt", "a", "--check", cwd=tmp_path).returncode == 1
    assert cnnspec("fmt", "a", cwd=tmp_path).returncode == 0
    assert cnnspec("fmt", "a", "--check", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a" / ".hidden" / "x.cnn").read_text() == "broken {"
    for command in ("check", "fmt", "summary"):
        done = cnnspec(command, "empty", cwd=tmp_path)
        assert (done.returncode, "`empty` contains no specs" in done.stderr) == (1, True)


def test_specs_from_stdin() -> None:
    assert cnnspec("check", "-", text=GOOD).stdout.startswith("-: ok, [N, 3, 32, 32] -> [N, 10]")
    assert json.loads(cnnspec("summary", "-", "--json", text=GOOD).stdout)["name"] == "t"
    wrong = cnnspec("check", "-", text=GOOD.replace("relu", "relou"))
    assert (wrong.returncode, "--> -:4:" in wrong.stderr) == (1, True)
    assert cnnspec("check", "-", "--fix", text=GOOD).returncode == 2


def test_short_options() -> None:
    assert cnnspec("-V").stdout == cnnspec("--version").stdout != ""
    assert cnnspec("check", "-h").stdout == cnnspec("check", "--help").stdout != ""


@pytest.mark.parametrize(("shell", "variables"), [
    ("bash", {"COMP_WORDS": "cnnspec pred", "COMP_CWORD": "1"}),
    ("zsh", {"_TYPER_COMPLETE_ARGS": "cnnspec pred"}),
    ("fish", {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_ARGS": "cnnspec pred"}),
])  # fmt: skip
def test_tab_completion(shell: str, variables: dict[str, str]) -> None:
    code = "import sys; sys.argv = ['cnnspec']; from cnnspec.cli import main; main()"
    environment = {**os.environ, "_CNNSPEC_COMPLETE": f"complete_{shell}", **variables}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "predict" in done.stdout
    assert "check" not in done.stdout


def test_train_has_the_options_of_build() -> None:
    def options(command: str) -> set[str]:
        return {option for parameter in make_command(command).params for option in parameter.opts}

    assert options("build") - options("train") == {"--train", "--at"}
    assert options("train") <= options("build")


def test_the_folder_of_datasets_can_be_an_environment_variable(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    (tmp_path / "sets").mkdir()
    monkeypatch.setenv("CNNSPEC_DATA", str(tmp_path / "sets"))
    for command in (["train"], ["build", "--train"], ["test", "--weights", "x.pt"]):
        done = cnnspec(*command, good, "--data", "cifar10", "--offline", cwd=tmp_path)
        assert done.returncode == 1
        assert "sets" in done.stderr or "weights file not found" in done.stderr
    assert cnnspec("build", good, cwd=tmp_path).returncode == 0
    assert str(find_data([], "folder", None).args["path"]) == str(tmp_path / "sets")
    assert str(find_data([], "folder", tmp_path).args["path"]) == str(tmp_path)


# --- draw ------------------------------------------------------------------------------------------


def test_draw_writes_a_file_and_prints_its_path(good: Path, tmp_path: Path) -> None:
    done = cnnspec("draw", good, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "t.svg\n", "")
    assert (tmp_path / "t.svg").read_text().startswith("<svg ")
    target = tmp_path / "net.dot"
    target.write_text("old")
    assert cnnspec("draw", good, "-o", target).returncode == 0
    assert target.read_text().startswith("digraph")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("-o", "net.jpg"), "E0523"),
        (("-o", "net"), "E0523"),
        (("-o", "svg"), "E0523"),
        (("-o", ".svg/"), "E0523"),
        (("-o", "net.svg", "--block", "nothing"), "E0523"),
        (("-o", "missing/net.svg"), "E0212"),
        (("-o", "good.cnn/net.svg"), "E0212"),
        (("-o", "folder.svg"), "E0212"),
        (("-o", f"{'x' * 300}.svg"), "E0212"),
        (("-o", "net.svg", "--at", "3x1x"), "E0204"),
    ],
    ids=str,
)
def test_draw_writes_nothing_after_an_error(good: Path, arguments: tuple[str, ...], code: str) -> None:
    folder = good.parent
    (folder / "folder.svg").mkdir()
    done = cnnspec("draw", good, *arguments, cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error[{code}]: ")
    assert "= help: " in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["folder.svg", "good.cnn"]


@pytest.mark.parametrize("link", ["file", "folder", "chain", "upwards"])
@pytest.mark.parametrize(
    "command",
    [["check"], ["check", "--fix"], ["check", "--format", "github"], ["check", "--json"], ["fmt"], ["fmt", "--diff"],
     ["summary"]],
    ids=" ".join,
)  # fmt: skip
def test_links_out_of_a_folder_argument_are_not_followed(command: list[str], link: str, tmp_path: Path) -> None:
    folder, outside = tmp_path / "given", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    private = "  SECRET   ->->  x\nnetwork   t\ninput 3x8x8\nconv 3x3 8 | relu() | relu()\n"
    victims = [outside / "victim.cnn", outside / "secret"]
    for victim in victims:
        victim.write_text(private)
    (folder / "own.cnn").write_text(GOOD)
    (folder / "alias.cnn").symlink_to("own.cnn")
    if link == "file":
        (folder / "net.cnn").symlink_to(victims[1])
    elif link == "folder":
        (folder / "sub").symlink_to(outside)
        (folder / "net.cnn").symlink_to("sub/victim.cnn")
    elif link == "chain":
        (folder / "sub").mkdir()
        (folder / "sub" / "one.cnn").symlink_to("../net.cnn")
        (folder / "net.cnn").symlink_to("../outside/secret")
    else:
        (folder / "net.cnn").symlink_to(Path("..", "outside", "victim.cnn"))
    done = cnnspec(*command, folder)
    assert "SECRET" not in done.stdout + done.stderr
    assert f"{folder / 'net.cnn'}: skipped" in done.stderr
    assert done.returncode == 0
    assert [victim.read_text() for victim in victims] == [private] * 2
    assert (folder / "net.cnn").is_symlink()
    if command == ["fmt"]:  # the user names the link
        victims[0].write_text(GOOD.replace("|", "  |"))
        (tmp_path / "own.cnn").symlink_to(victims[0])
        assert cnnspec("fmt", tmp_path / "own.cnn").returncode == 0
        assert victims[0].read_text() != GOOD.replace("|", "  |")


@pytest.mark.parametrize("form", ["json", "sarif"])
def test_a_folder_without_specs_is_reported_in_the_output_format(form: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = cnnspec("check", tmp_path / "empty", good, "--format", form)
    assert done.returncode == 1
    assert "E0212" in done.stdout
    data = json.loads(done.stdout)
    if form == "json":
        assert [file["ok"] for file in data["files"]] == [False, True]
    assert cnnspec("check", tmp_path / "empty").stderr.startswith("error[E0212]")


COMMANDS_WITH_OUTPUT = [
    ("--version",), ("--help",), ("check", "--help"), ("list",), ("list", "--json"), ("check", "resnet20"),
    ("explain", "E0301"), ("check", "resnet20", "--json"), ("check", "resnet20", "--format", "sarif"),
    ("summary", "resnet20"), ("summary", "resnet20", "--json"), ("summary", "resnet20", "--format", "csv"),
    ("show", "resnet20"), ("diff", "resnet20", "resnet50"), ("fmt", "-"),
]  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("command", COMMANDS_WITH_OUTPUT, ids=" ".join)
def test_output_that_cannot_be_written_is_a_plain_message(command: tuple[str, ...], good: Path) -> None:
    shell = 'exec "$0" -m cnnspec "$@" '
    for redirection in (">/dev/full", ">&-"):
        done = subprocess.run(
            ["sh", "-c", shell + redirection, sys.executable, *command],
            input=good.read_text() + "relu   |relu",
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1, redirection
        assert done.stderr.splitlines()[-1].startswith("cannot write the output: "), done.stderr
        assert "internal error" not in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("command", ["check", "fmt", "summary"])
def test_a_closed_standard_input_is_an_error(command: str) -> None:
    for redirection in ("<&-", "<&- 2>&-", "2>&-"):
        done = subprocess.run(
            ["sh", "-c", f'exec "$0" -m cnnspec {command} - {redirection}', sys.executable],
            input="conv (", capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1, redirection
        if redirection == "<&-":
            assert done.stderr.startswith("error[E0212]: cannot read the standard input: ")


LINE_ENDS = [
    "conv 3x3 8 stride=", "conv 3x3 8 bias=  # why", "conv 3x3", "slice 0..", "dropout 20%", "let a =", "param a =",
    "repeat", "block", "add {", "train {block", "train {data", "expect output", "use", "init conv", "when",
    "conv 3x3 8 when",
]  # fmt: skip


@pytest.mark.parametrize(
    "following", ["relu", "head global_avgpool | flatten | linear classes", "bn }", "x: conv 1x1 4"]
)
@pytest.mark.parametrize("line", LINE_ENDS)
def test_fmt_does_not_turn_an_error_into_another(line: str, following: str, tmp_path: Path) -> None:
    path = tmp_path / "net.cnn"
    text = f"{HEAD}\n\n\n{line}\n{following}\n"
    path.write_text(text)

    def codes() -> list[str]:
        try:
            return [found.code for found in compile_file(str(path)).diagnostics if found.severity == "error"]
        except CnnspecError as error:
            return [found.code for found in error.diagnostics]

    before = codes()
    code = make_command("fmt").main([str(path)], standalone_mode=False)
    assert code in (0, 1)
    assert codes() == before
    if code == 1:
        assert path.read_text() == text
