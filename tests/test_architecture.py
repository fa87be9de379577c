"""The rules of the house: rings, sizes, docstrings and rows."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cnnspec
from cnnspec import recipe
from cnnspec.ops import JOINS, OPS, inits
from cnnspec.resources import resource

ROOT = Path(__file__).parents[1]
PACKAGE = Path(cnnspec.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        absent = {"torch", "torchvision", "numpy", "pytorch_lightning", "safetensors", "torchmetrics"}
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run_without_torch(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_TORCH + code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("command", ["check", "summary", "show", "fmt --check", "build", "build --train"])
def test_the_front_ring_needs_no_torch(command: str) -> None:
    spec = str(resource("specs", "resnet20.cnn"))
    args = [*command.split(), spec]
    done = run_without_torch(f"sys.argv = {['cnnspec', *args]!r}\nfrom cnnspec.cli import main\nmain()")
    if command.startswith("build"):  # the proof that the guard can fail, and the answer that a user gets then
        assert done.returncode == 1
        assert "E0507" in done.stderr
        assert "pip install 'cnnspec[train]'" in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def test_check_imports_no_more_than_it_needs() -> None:
    code = """if True:
        import sys
        import cnnspec
        cnnspec.load('resnet110')
        print(sorted({'torch', 'numpy', 'rich', 'typer'} & set(sys.modules)))
        print(cnnspec.Model.__pydantic_complete__)  # the schema, which only JSON needs
        sys.argv = ['cnnspec', 'check', 'resnet20']
        from cnnspec.cli import main
        try:
            main()
        except SystemExit:
            print(sorted(name for name in sys.modules if name.startswith(('cnnspec.training', 'cnnspec.cli.s'))))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    front, schema, _, commands = done.stdout.splitlines()
    assert (front, schema, commands) == ("[]", "False", "['cnnspec.cli.specs']"), done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_say_what_they_are(path: Path) -> None:
    assert path.stem not in ("utils", "helpers", "common", "misc")
    assert path.read_text("utf-8").startswith('"""'), "a module says in its first line what it is for"


@pytest.mark.parametrize("kind", [*OPS.values(), *JOINS.values()], ids=lambda kind: kind.name)
def test_an_operator_says_what_it_means(kind: type) -> None:
    doc = inspect.getdoc(kind) or ""
    assert "Source: " in doc
    assert kind.torch.startswith("torch")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", OPS)
def test_an_operator_has_one_row_in_the_torch_backend(name: str) -> None:
    pytest.importorskip("torch")
    from cnnspec.backends.torch.layers import EXPRESSIONS, ROWS

    rows = [table for table, names in (("ROWS", ROWS), ("EXPRESSIONS", EXPRESSIONS)) if name in names]
    assert len(rows) == 1, f"{name} needs a row in ROWS or EXPRESSIONS of backends/torch/layers.py"


def test_every_choice_of_a_recipe_has_its_row() -> None:
    pytest.importorskip("torch")
    from cnnspec.backends.torch.inits import FILLS
    from cnnspec.training.data.augment import TRANSFORMS
    from cnnspec.training.loop.optimizers import OPTIMIZERS, SCHEDULES

    assert set(FILLS) == set(inits.INITS)
    assert set(TRANSFORMS) == set(recipe.AUGMENTATIONS)
    assert set(OPTIMIZERS) == set(recipe.OPTIMIZERS)
    assert set(SCHEDULES) == set(recipe.SCHEDULES)


def test_the_words_of_torch_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    from cnnspec.lints.text import MODULE_WORDS

    here = {name for name in dir(torch.nn.Module()) if not name.startswith("_")}
    assert sorted(here - MODULE_WORDS) == []
    assert {"forward", "train", "type"} <= MODULE_WORDS


def test_cores_are_counted_in_one_place() -> None:
    """`os.cpu_count`, and a pool of threads without a number, count those of the machine, not those of a container."""
    counting = re.compile(r"cpu_count|PoolExecutor\(\)")
    assert [path.name for path in MODULES if counting.search(path.read_text("utf-8"))] == ["resources.py"]


def test_no_trace_of_a_machine() -> None:
    for path in [*MODULES, *ROOT.glob("specs/**/*.cnn"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md")]:
        assert not re.search(r"(^|[\s\"'`])/(home|root|Users|tmp|work)/", path.read_text("utf-8")), path
