"""Write `docs/zoo.md`: a row for each shipped network, with the figures of its spec and of its reference.

Run `python tests/harness/zoo.py`. It builds every reference on the meta device and takes about a minute.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cnnspec.cli.dump import families
from cnnspec.compiler import compile_file
from cnnspec.semantics.loader import shipped_folder, shipped_specs, standard_blocks
from cnnspec.syntax import ast as tree

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "zoo.md"

HEAD = """# Networks

The shipped networks, by family. `cnnspec list` lists them, and each can be named in every command: `cnnspec summary
resnet50`. A file that starts with `extends resnet50` changes one.

For networks with a reference, tests compare keys, shapes, logits in evaluation and training, gradients and running
statistics with the implementation in torchvision or timm, at two image sizes. *Equal* says how exact the logits are:
*bit for bit*, or up to a difference relative to the largest logit, which the header of the spec explains.

- **MACs**: multiply-adds for one image of the native size, without auxiliary heads. *Published* is the figure of the
  weights in torchvision, which includes the auxiliary heads of FCN and DeepLab; timm publishes none in its package.
- **Lines**: lines of code, excluding comments, blank lines and the recipe. *Spec* counts the file, those that it
  extends, and the blocks that it uses. *Own* counts the file alone. *Reference* counts the classes of torchvision or
  timm that the network consists of and the function that builds it, without docstrings and helper functions.

`python tests/harness/zoo.py` writes this page.
"""


COLUMNS = """| network | library | parameters | GMACs | published | spec | own | reference | equal |
|---|---|--:|--:|--:|--:|--:|--:|---|
"""


@dataclass(frozen=True)
class SpecFigures:
    """What a spec alone says."""

    parameters: int
    macs: int
    lines: int
    own: int


def spec_figures(name: str) -> SpecFigures:
    """Compile a spec and count its lines."""
    graph = compile_file(name).require_graph()
    used = set(graph.scopes.values())
    lines = own = _spec_lines(_statements(shipped_specs()[name]))
    for path in _dependencies(shipped_specs()[name], set()):
        is_library = path.parent.name == "blocks"
        statements = _statements(path)
        lines += _spec_lines(s for s in statements if not is_library or (isinstance(s, tree.Block) and s.name in used))
    return SpecFigures(graph.parameter_count, graph.macs, lines, own)


@cache
def _statements(path: Path) -> tuple[tree.Node, ...]:
    file = compile_file(path).tree
    assert file is not None
    return file.statements


def _dependencies(path: Path, found: set[Path]) -> set[Path]:
    """Return the files that a spec names with `extends` and `use`, directly or not, and those of standard blocks."""
    own = {statement.name for statement in _statements(path) if isinstance(statement, tree.Block)}
    for node in (node for statement in _statements(path) for node in statement.walk()):
        other = None
        match node:
            case tree.Extends():
                other = shipped_specs()[Path(node.target).stem]
            case tree.Use():
                other = (shipped_folder() / node.path).with_suffix(".cnn")
            case tree.Call() | tree.Each() if node.callee in standard_blocks() and node.callee not in own:
                other = shipped_folder() / "blocks" / f"{node.callee}.cnn"
            case _:
                pass
        if other is not None and other not in found:
            found.add(other)
            _dependencies(other, found)
    return found


def _spec_lines(statements: Iterable[tree.Node]) -> int:
    """Count the lines of statements that are neither blank nor comments, without the recipe."""
    texts = [s.span.text for s in statements if not isinstance(s, tree.Train)]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in lines)


@cache
def references() -> dict[str, Any]:
    """Return the references of the tests by name."""
    path = ROOT / "tests" / "backends" / "test_reference_networks.py"
    spec = importlib.util.spec_from_file_location("reference_networks", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return {reference.name: reference for reference in module.REFERENCES}


def reference_lines(name: str) -> int:
    """Count the lines of Python that define a reference: its classes, and the function that builds it."""
    import torch

    with torch.device("meta"):
        network = references()[name].build()
    kinds = {type(module) for module in network.modules()}
    kinds |= {base for kind in kinds for base in kind.__mro__}
    sources = {kind for kind in kinds if kind.__module__.split(".")[0] in ("torchvision", "timm")}
    return sum(code_lines(inspect.getsource(part)) for part in (*sources, inspect.unwrap(_builder(name))))


def _builder(name: str) -> Any:
    reference = references()[name]
    if reference.library == "timm":
        from timm.models import model_entrypoint

        return model_entrypoint(name)
    import torchvision

    models: Any = torchvision.models
    if reference.library == "detection":
        return models.detection.backbone_utils.resnet_fpn_backbone
    return getattr(models.segmentation if reference.library == "segmentation" else models, name)


def code_lines(source: str) -> int:
    """Count the lines of Python code without comments, blank lines and docstrings."""
    source = textwrap.dedent(source)
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            first = node.body[0]
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            lines |= set(range(token.start[0], token.end[0] + 1)) if token.string else set()
    return len(lines - docstrings)


def published_macs(name: str) -> str:
    """Return the multiply-adds that torchvision publishes with its weights, in billions."""
    import torchvision

    if references()[name].library in ("timm", "detection"):
        return ""
    weights = torchvision.models.get_model_weights(_builder(name))
    counts = {weight.meta["_ops"] for weight in weights if "_ops" in weight.meta}
    return f"{min(counts):.2f}" if counts else ""


def cells(name: str) -> tuple[str, str, str, str]:
    """Return the cells of a row that need only the spec: parameters, multiply-adds in billions, lines, own lines."""
    figures = spec_figures(name)
    return f"{figures.parameters:,}", f"{figures.macs / 1e9:.2f}", str(figures.lines), str(figures.own)


def equality(reference: Any) -> str:
    """Return how exact the logits of a network are."""
    return "bit for bit" if not reference.tolerance else f"to {reference.tolerance:g}"


def row(name: str) -> str:
    """Return the row of a network."""
    parameters, macs, lines, own = cells(name)
    reference = references().get(name)
    if reference is None:
        return f"| `{name}` | | {parameters} | {macs} | | {lines} | {own} | | |"
    library = "torchvision" if reference.library in ("segmentation", "detection") else reference.library
    published, theirs = published_macs(name), reference_lines(name)
    equal = equality(reference)
    return f"| `{name}` | {library} | {parameters} | {macs} | {published} | {lines} | {own} | {theirs} | {equal} |"


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for family, names in families(shipped_specs()).items():
        parts.append(f"\n## {family}\n\n{COLUMNS}")
        parts += [f"{row(name)}\n" for name in names]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
