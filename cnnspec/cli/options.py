"""Options that commands share, and functions that parse their values."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from cnnspec.api import resize
from cnnspec.compiler import Compilation, compile_file, compile_source, locate
from cnnspec.diagnostics import Reporter, Source, echo, failure
from cnnspec.ir import Graph
from cnnspec.semantics.loader import SUFFIX, is_below, read_stdin

DATA_VARIABLE = "CNNSPEC_DATA"
"""The environment variable with the default of `--data-dir`."""
STDIN = "-"
"""The name of the standard input as a spec."""

SpecPaths = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", help="Spec files, names of shipped specs, folders with specs, or `-` for stdin."),
]
SpecFile = Annotated[str, typer.Argument(metavar="FILE", help="A spec file, or the name of a shipped spec.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
InitialWeights = Annotated[
    str | None, typer.Option("--weights", metavar="FILE", help="Initial weights: a file, or torchvision:DEFAULT.")
]
Match = Annotated[
    str, typer.Option(metavar="HOW", help="Match tensors by name, by order, or by a map that `cnnspec match` wrote.")
]
ResumeFrom = Annotated[
    str | None, typer.Option("--resume-from", metavar="RUN", help="Resume this run: its folder or its number.")
]
Reinit = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE", help="A module to initialize at random instead of loading it, such as a new head."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override a `param` of the spec or an entry of its recipe."),
]
AtSize = Annotated[
    str | None, typer.Option("--at", metavar="CxHxW", help="Image size to use instead of the one in the spec.")
]
AllowHuge = Annotated[
    bool,
    typer.Option(
        "--allow-huge",
        help="Allow more than 10,000,000,000 parameters, and tensors of more than 100,000,000,000 elements.",
    ),
]
DataName = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help="cifar10, cifar100, fashion_mnist, mnist, fashion_mini, or folder:PATH (also folder with --data-dir).",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="DIR", help="Folder of datasets, also for downloads (default: $CNNSPEC_DATA, or data)."
    ),
]
AcceptChanges = Annotated[
    bool, typer.Option("--accept-changes", help="Use settings, spec and data as they are now, even if they changed.")
]
VerifyData = Annotated[
    bool, typer.Option("--verify-data", help="Hash the contents of all images, to notice when they change.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Do not download anything.")]


def settings(pairs: list[str] | None) -> dict[str, str]:
    return dict(_named(pair) for pair in pairs or [])


def _named(pair: str) -> tuple[str, str]:
    """Split `name=value` in two."""
    key, sign, value = pair.partition("=")
    if not sign or not key.replace(".", "").isidentifier() or not value.strip():
        raise typer.BadParameter(f"`{pair}` is not of the form name=value", param_hint="--set")
    return key, value


def grid(pairs: list[str] | None) -> dict[str, list[str]]:
    """Return the values of each name in `name=value,value`; a comma in brackets or quotes does not separate."""
    found: dict[str, list[str]] = {}
    for pair in pairs or []:
        key, text = _named(pair)
        values = split_values(text)
        if key in found:
            raise typer.BadParameter(f"duplicate name `{key}`; write `{key}=A,B`", param_hint="--set")
        if not all(values) or len(set(values)) < len(values):
            what = "a duplicate value" if all(values) else "an empty value"
            raise typer.BadParameter(f"`{pair}` has {what}", param_hint="--set")
        found[key] = values
    return found


def split_values(text: str) -> list[str]:
    """Split a text at its commas, except for those in brackets or quotes."""
    parts, depth, quoted = [""], 0, False
    for letter in text:
        if letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not quoted and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def one_of(option: str, word: str, known: Iterable[str]) -> str:
    """Return the value of an option that has a fixed set of values.

    Raises:
        BadParameter: It is another value.
    """
    if word not in known:
        raise typer.BadParameter(f"`{word}` is not one of {', '.join(known)}", param_hint=option)
    return word


def format_of(form: str, as_json: bool, known: Iterable[str], usual: str) -> str:
    """Return the value of `--format`; `--json` means `--format json`.

    Raises:
        BadParameter: The format does not exist, or contradicts `--json`.
    """
    one_of("--format", form, known)
    if as_json and form not in (usual, "json"):
        raise typer.BadParameter(f"`--json` and `--format {form}` cannot be used together", param_hint="--format")
    return "json" if as_json else form


def data_folder(given: Path | None) -> Path:
    """Return the folder of datasets: the option, the environment variable `CNNSPEC_DATA`, or `data`."""
    return given or Path(os.environ.get(DATA_VARIABLE) or "data")


def spec_paths(files: Iterable[str]) -> list[str]:
    """Return the specs that arguments name; a folder means all specs below it, except for hidden ones.

    A folder of unknown origin must not lead to other files, so symbolic links out of it are skipped with a message.

    Raises:
        CnnspecError: E0212 if a folder contains no specs.
    """
    found: list[str] = []
    for file in files:
        if not os.path.isdir(file) or locate(file)[0] != Path(file):
            found.append(file)
            continue
        below = sorted(Path(file).rglob(f"*{SUFFIX}"))
        below = [path for path in below if not any(p.startswith(".") for p in path.relative_to(file).parts)]
        specs = [str(path) for path in below if is_below(path, Path(file))]
        for path in sorted({*map(str, below)} - {*specs}):
            echo(
                f"{path}: skipped, because it is a symbolic link that does not lead to a file in `{file}`",
                file=sys.stderr,
            )
        if not specs:
            raise failure("E0212", f"`{file}` contains no specs", file=file, help=f"name files that end in `{SUFFIX}`")
        found += specs
    return found


def compile_spec(
    file: str, pairs: list[str] | None = None, allow_huge: bool = False, lints: Iterable[str] = ()
) -> Compilation:
    if file != STDIN:
        return compile_file(file, settings(pairs), allow_huge=allow_huge, lints=[*lints])
    reporter = Reporter()
    text = read_stdin(reporter)
    if text is None:
        return Compilation(Source(file, ""), reporter)
    return compile_source(Source(file, text), None, settings(pairs), allow_huge=allow_huge, lints=[*lints])


def compile_at(file: str, pairs: list[str] | None, at: str | None, allow_huge: bool = False) -> Graph:
    """Return the network of a spec, for its declared image size or for the size `at`."""
    graph = compile_spec(file, pairs, allow_huge).require_graph()
    return graph if at is None else resize(graph, at)
