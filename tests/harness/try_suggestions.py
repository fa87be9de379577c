"""Try every suggestion that diagnostics make: `python tests/harness/try_suggestions.py --count 2000`.

The texts are the error cases, specs with one planted error, and shipped specs with one random change. A suggestion is
code that a help quotes and that is not in the text yet. It is tried by its edit if there is one, and else in the ways
in which a reader would apply it (`suggestions.readings`). Its error must be gone then.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cnnspec
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Diagnostic, Source
from cnnspec.lints import OFF_BY_DEFAULT
from cnnspec.semantics.loader import shipped_specs
from cnnspec.testing.faults import draw_faulty
from harness.cases import ERROR_CASES, read_marks
from harness.suggestions import QUOTE, is_gone, readings

MAX_READINGS = 80


@lru_cache(maxsize=1)
def constants() -> frozenset[str]:
    """Return every string in the source of the package: a help among them is the same for all inputs."""
    nodes = (
        node for path in Path(cnnspec.__file__).parent.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
    )
    return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def quotes(diagnostic: Diagnostic, text: str) -> list[str]:
    """Return the code of a help that is new: not in the text, and not part of a general rule."""
    help = diagnostic.help or ""
    if help in constants() or re.match(r"(?:choose from|did you mean|available|labels in scope|`\w+` takes)", help):
        return []
    return new_code(help, text)


_EXPLANATION = re.compile(r": `\w+` takes .*|; `\S+` ha(?:s|ve) no .*|: `net\..*|without `\w+`|`\w+` section")
"""Parts of a help that name code without proposing it."""


def new_code(help: str, text: str) -> list[str]:
    """Return the code in a help that is not in the text, except for options and the first halves of groups."""
    found = dict.fromkeys(QUOTE.findall(_EXPLANATION.sub("", help)))
    return [
        code
        for code in found
        if plain(code) not in plain(text) and code[:2] != "--" and code.count("{") == code.count("}")
    ]


def is_written(code: str, fixed: str) -> bool:
    """Return whether a fix writes code, where the value of an argument may be written at its position."""
    return any(plain(part) in plain(fixed) for part in (code, code.rpartition("=")[2].strip() or code))


def try_suggestions(
    text: str, path: Path | None, lints: frozenset[str] = frozenset(), *, edits: bool = True
) -> Iterator[tuple[str, Diagnostic, str]]:
    """Try the suggestions for a text: those in words, and with `edits` also its fixes.

    Returns:
        How each was tried (`edit`, `words`, or `failed`), its diagnostic, and its code.
    """
    name = path.name if path else "spec"
    done = compile_source(Source(name, text), path, lints=lints)
    for diagnostic in done.diagnostics:
        if diagnostic.span and diagnostic.span.source is not done.source:
            continue
        before = {
            (other.code, other.span.start if other.span else -1)
            for other in done.diagnostics
            if other is not diagnostic and (other.span is None or other.span.source is done.source)
        }
        for fix in diagnostic.fixes if edits else ():
            changes = [(edit.span.start, edit.span.end, edit.text) for edit in fix.edits]
            yield "edit" if is_gone(diagnostic, text, changes, path, before) else "failed edit", diagnostic, fix.help
            for code in new_code(fix.help, text) if not fix.help.startswith("did you mean") else ():
                if not is_written(code, fix.apply(text)):
                    yield "failed: another edit", diagnostic, code
        fixed = [fix.apply(text) for fix in diagnostic.fixes]
        for code in quotes(diagnostic, text):
            if any(is_written(code, one) for one in fixed):
                continue
            tried = (changes for _, changes in zip(range(MAX_READINGS), readings(diagnostic, code, text), strict=False))
            yield (
                "words" if any(is_gone(diagnostic, text, one, path, before) for one in tried) else "failed",
                diagnostic,
                code,
            )


_TOKEN = re.compile(r"\d+|[A-Za-z_]\w*")


def mutant(text: str, rng: random.Random) -> str:
    """Change one word, number, argument or element of a spec."""
    lines = [i for i, line in enumerate(text.split("\n")) if line.strip() and not line.lstrip().startswith("#")]
    changed, at = text.split("\n"), rng.choice(lines)
    code, sign, comment = changed[at].partition("#")
    kind = rng.randrange(6)
    tokens = list(_TOKEN.finditer(code))
    if kind < 3 and tokens:
        token = rng.choice(tokens)
        word = token.group()
        if word.isdigit():
            new = str(rng.choice([int(word) + 1, 2 * int(word), max(int(word) - 1, 0), int(word) // 2, 0]))
        else:
            i = rng.randrange(len(word))
            new = rng.choice([word[:i] + word[i + 1 :], word[:i] + word[i] + word[i:], word[:-1] + "z"])
        code = code[: token.start()] + new + code[token.end() :]
    elif kind == 3:
        parts = code.split("|")
        del parts[rng.randrange(len(parts))]
        code = "|".join(parts)
    elif kind == 4:
        words = code.split(" ")
        del words[rng.randrange(len(words))]
        code = " ".join(words)
    else:
        code = re.sub(r"^(\s*)[\w.]+\s*:", r"\1", code) if ":" in code else code + " 3"
    changed[at] = code + sign + comment
    return "\n".join(changed)


@lru_cache(maxsize=1)
def small_specs() -> list[Path]:
    """Return the shipped networks that are checked in a few milliseconds."""
    return [path for path in sorted(shipped_specs().values()) if len(path.read_text("utf-8")) < 6_000]


def texts(count: int, seed: int) -> Iterator[tuple[str, str, Path | None, frozenset[str]]]:
    """Return the texts to check: their kind, the text, its path, and the lints to turn on."""
    for path in ERROR_CASES:
        yield "cases", read_marks(path.read_text("utf-8")).text, path, frozenset(OFF_BY_DEFAULT & {path.parent.name})
    for number in range(count):
        yield "planted", draw_faulty(random.Random(seed + number).randint).text, None, frozenset()
    for number in range(count):
        rng = random.Random(seed + number)
        path = rng.choice(small_specs())
        yield "mutants", mutant(path.read_text("utf-8"), rng), path, frozenset()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="planted errors and mutants, each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=["cases", "planted", "mutants"])
    options = parser.parse_args()
    counts, failures = Counter[str](), dict[tuple[str, str], str]()
    for kind, text, path, lints in texts(options.count, options.seed):
        if kind not in options.kinds:
            continue
        counts[f"{kind}: texts"] += 1
        for outcome, diagnostic, code in try_suggestions(text, path, lints):
            counts[f"{kind}: {outcome}"] += 1
            if outcome.startswith("failed"):
                template = re.sub(r"`[^`]*`|[0-9]+", "`", diagnostic.help or "")
                where = f"{path.name if path else 'planted'}:{diagnostic.line}"
                failures.setdefault(
                    (diagnostic.code, template),
                    f"{diagnostic.code} {outcome} {where} `{code}`: {diagnostic.message} => {diagnostic.help}",
                )
    for name, number in sorted(counts.items()):
        print(f"{name:<30} {number:>8,}")
    for line in failures.values():
        print(line)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
