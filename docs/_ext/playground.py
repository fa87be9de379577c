"""Assemble the playground: a page that checks specs in the browser, with Pyodide and CodeMirror.

`python docs/_ext/playground.py` downloads its packages into `build/playground`, with the hashes of `package-lock.json`
and `requirements.txt`. The build of the documentation then writes the page into its folder `playground`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "playground"
PACKAGES = ROOT / "build" / "playground"
MODULES, WHEELS = PACKAGES / "node_modules", PACKAGES / "wheels"
PYODIDE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip")
PLATFORM = (
    "--platform",
    "pyemscripten_2026_0_wasm32",
    "--python-version",
    "314",
    "--implementation",
    "cp",
    "--abi",
    "cp314",
)
UNUSED = re.compile(r"pydantic/(v1/|mypy\.py)|lark/(tools|__pyinstaller)/|\.pyi$|\.dist-info/(RECORD|licenses/)")
IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*)(["'])([@\w][^"']*)\2""")
MISSING = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>cnnspec playground</title>
<p>This copy of the documentation was built without the playground, because its packages are not installed:
install npm, then run <code>make docs-setup docs</code>.</p><p><a href="../index.html">cnnspec</a></p></html>
"""


def fetch() -> None:
    """Download the packages, unless they are there. Without npm, do nothing and say so."""
    npm = shutil.which("npm")
    if npm is None:
        print("npm is not installed: the documentation is built without the playground", file=sys.stderr)
        return
    inputs = [PAGE / "package.json", PAGE / "package-lock.json", PAGE / "requirements.txt"]
    stamp, wanted = PACKAGES / "fetched.txt", "".join(path.read_text("utf-8") for path in inputs)
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        stamp.touch()
        return
    shutil.rmtree(PACKAGES, ignore_errors=True)
    PACKAGES.mkdir(parents=True)
    for path in inputs[:2]:
        shutil.copy(path, PACKAGES)
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run([npm, "ci", *options], cwd=PACKAGES, check=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    subprocess.run([*pip, *PLATFORM, "-d", str(WHEELS), "-r", str(inputs[2])], check=True)
    stamp.write_text(wanted, "utf-8")


def is_fetched() -> bool:
    return (PACKAGES / "fetched.txt").exists()


def assemble(out: Path) -> None:
    """Write the page and all that it loads into a folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if not is_fetched():
        (out / "index.html").write_text(MISSING, "utf-8")
        return
    for name in ("index.html", "playground.css", "worker.js"):
        shutil.copy(PAGE / name, out)
    (out / "pyodide").mkdir()
    for name in PYODIDE:
        shutil.copy(MODULES / "pyodide" / name, out / "pyodide")
    # Nothing is loaded from the package list of Pyodide, which only its format is needed of.
    lock = json.loads((MODULES / "pyodide" / "pyodide-lock.json").read_text("utf-8"))
    (out / "pyodide" / "pyodide-lock.json").write_text(json.dumps({"info": lock["info"], "packages": {}}), "utf-8")
    used = _write_scripts(out)
    _write_packages(out / "packages.zip")
    (out / "licenses.txt").write_text("\n".join(_licenses([*used, "pyodide"])), "utf-8")


def _write_scripts(out: Path) -> list[str]:
    """Write the script and the modules that it imports, by relative paths, and return the names of their packages."""
    shutil.copy(ROOT / "editors" / "jupyterlab" / "static" / "cnn.js", out)
    used: list[str] = []

    def relative(match: re.Match[str]) -> str:
        if match[3] not in used:
            used.append(match[3])
        return f'{match[1]}"./{_module_name(match[3])}"'

    script = (PAGE / "playground.js").read_text("utf-8")
    (out / "playground.js").write_text(IMPORT.sub(relative, script), "utf-8")
    for package in used:  # grows
        about = json.loads((MODULES / package / "package.json").read_text("utf-8"))
        text = (MODULES / package / about["exports"]["import"]).read_text("utf-8")
        (out / _module_name(package)).write_text(IMPORT.sub(relative, text), "utf-8")
    return used


def _module_name(package: str) -> str:
    return package.removeprefix("@").replace("/", "-") + ".js"


def _write_packages(path: Path) -> None:
    """Write the Python packages: wheels, and the part of this package that needs no torch."""
    from cnnspec.syntax import parser

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:

        def add(name: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # without the time: the same bytes

        for wheel in sorted(WHEELS.glob("*.whl")):
            with zipfile.ZipFile(wheel) as members:
                for name in members.namelist():
                    if not UNUSED.search(name):
                        add(name, members.read(name))
        for file in _front_files():
            add(file.relative_to(ROOT).as_posix(), file.read_bytes())
        for folder, pattern in (("grammar", "*.lark"), ("specs", "**/*.cnn"), ("docs/errors", "*.md")):
            for file in sorted((ROOT / folder).glob(pattern)):
                add(f"cnnspec/{file.relative_to(ROOT).as_posix()}", file.read_bytes())
        grammar = (ROOT / "grammar" / "cnn.lark").read_text("utf-8")
        tables = parser.serialize(parser.build_parser(grammar), parser.table_key(grammar))
        add(f"cnnspec/grammar/{parser.TABLES}", tables)
        add("check.py", (PAGE / "check.py").read_bytes())


def _front_files() -> Iterator[Path]:
    """Return the modules that need no torch, by the import contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    front = next(one for one in contracts if "without torch" in one["name"])
    yield ROOT / "cnnspec" / "__init__.py"
    yield ROOT / "cnnspec" / "backends" / "__init__.py"
    for module in front["source_modules"]:
        path = ROOT.joinpath(*module.split("."))
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def _licenses(modules: list[str]) -> Iterator[str]:
    """Return the lines of the list of licenses."""
    yield "The playground contains these packages, and cnnspec, whose license is MIT.\n"
    for name in sorted(modules):
        about = json.loads((MODULES / name / "package.json").read_text("utf-8"))
        yield f"== {name} {about['version']}: {about['license']}\n"
        yield from (path.read_text("utf-8") for path in sorted((MODULES / name).glob("LICENSE*")))
    yield "The source of Pyodide is https://github.com/pyodide/pyodide, under the Mozilla Public License 2.0."
    yield "It contains Python, under the PSF license (https://docs.python.org/3/license.html), and Emscripten (MIT).\n"
    for wheel in sorted(WHEELS.glob("*.whl")):
        with zipfile.ZipFile(wheel) as members:
            names = members.namelist()
            about = members.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
            license = re.search(r"^License(?:-Expression)?: (.*)$", about, re.MULTILINE)
            yield f"== {' '.join(wheel.name.split('-')[:2])}: {license[1] if license else 'see below'}\n"
            texts = (name for name in names if re.search(r"\.dist-info/.*LICENSE", name))
            yield from (members.read(name).decode() for name in texts)


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the playground to the site that Sphinx builds."""

    def finish(app: Sphinx, error: Exception | None) -> None:
        if error is None:
            assemble(Path(app.outdir) / "playground")

    app.connect("build-finished", finish)
    return {"parallel_read_safe": True}


if __name__ == "__main__":
    fetch()
