"""Measure soundness with random specs and texts: each measurement counts outcomes over seeds.

A measurement is a function of one seed. So a run can be split among processes, and you can repeat a seed that shows a
violation alone: `python -m cnnspec.testing valid --seed 4711 --count 1`.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from textwrap import wrap

from cnnspec import ir
from cnnspec.api import check
from cnnspec.compiler import compile_file, compile_source
from cnnspec.diagnostics import CnnspecError, Diagnostic, Source
from cnnspec.ops import OPS
from cnnspec.syntax import ast
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.constructs import CONSTRUCTS, find_constructs
from cnnspec.testing.faults import draw_faulty
from cnnspec.testing.front_commands import peak_memory, run_all, warm_up
from cnnspec.testing.fuzz import REPETITIONS, draw_text
from cnnspec.testing.generator import FEATURES, SpecGenerator
from cnnspec.testing.resource_attacks import BOMBS, HEAVY

FREQUENT = (
    *dict.fromkeys((*OPS, *FEATURES)),
    *("scale bare", "shift bare", "blurpool stride", "upsample mode=bilinear", "upsample mode=bicubic"),
    *("label.path:", "output", "name=", "{expression}", "param = [list]", "sum()", "len()", "in.c", "in.h", "in.w"),
    "several images",
)
"""Constructs that at least 5 % of the generated specs must contain."""

_SIDE = 80
_TRAINED_ONE_IN = 10
"""`valid` trains one in so many specs on the CPU; the others run on the meta device only."""
_CHUNK = 25


@dataclass
class Tally:
    """The counts of a run.

    Attributes:
        counts: Occurrences by name.
        greatest: The maximum of each quantity, with the seed or name that caused it.
        wrong: Violations, each with its seed or name.
    """

    counts: Counter[str] = field(default_factory=Counter[str])
    greatest: dict[str, tuple[float, str]] = field(default_factory=dict[str, tuple[float, str]])
    wrong: list[str] = field(default_factory=list[str])

    def add(self, other: Tally) -> None:
        self.counts += other.counts
        for name, (value, where) in other.greatest.items():
            self.note(name, value, where)
        self.wrong += other.wrong

    def note(self, name: str, value: float, where: str) -> None:
        """Record a value if it is the maximum of its quantity."""
        if name not in self.greatest or value > self.greatest[name][0]:
            self.greatest[name] = (value, where)


def _errors(diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
    return [diagnostic for diagnostic in diagnostics if diagnostic.severity == "error"]


def _draw_spec(seed: int, tally: Tally) -> tuple[ast.File, ir.Graph, random.Random] | None:
    """Generate a spec and compile it. Record a violation if it does not check."""
    tally.counts["specs"] += 1
    rng = random.Random(seed)
    drawn = compile_source(Source("drawn", format_file(SpecGenerator(rng.randint).file())))
    try:
        graph = drawn.require_graph()
        assert drawn.tree is not None
        return drawn.tree, graph, rng
    except CnnspecError as error:
        tally.wrong.append(f"seed {seed} is invalid: {error.diagnostics[0].message}")
    return None


# --- measurements ---------------------------------------------------------------------------------


def valid(seed: int, tally: Tally) -> None:
    """Compare shapes, parameters and multiply-adds of a generated spec with torch at five sizes, and train some."""
    from cnnspec.testing.oracle import Unsound, compare_training_step, compare_with_torch, draw_sizes

    drawn = _draw_spec(seed, tally)
    if drawn is None:
        return
    file, graph, rng = drawn
    sizes = draw_sizes(graph, rng, 5)
    try:
        tally.counts["shapes compared"] += compare_with_torch(graph, sizes)
        if seed % _TRAINED_ONE_IN == 0 and graph.parameter_count:
            tally.counts["weights trained"] += compare_training_step(graph, seed)
            tally.counts["specs trained"] += 1
    except (Unsound, RuntimeError, ValueError) as error:
        tally.wrong.append(f"seed {seed}: {error}")
    tally.counts["sizes"] += len(sizes)
    tally.counts["operators"] += len(graph.nodes)
    tally.counts.update(f"with `{name}`" for name in find_constructs(file, graph))


def constructs(seed: int, tally: Tally) -> None:
    """Count the constructs of the language in a generated spec."""
    drawn = _draw_spec(seed, tally)
    if drawn is not None:
        file, graph, _ = drawn
        tally.counts.update(f"with `{name}`" for name in find_constructs(file, graph))


def sets(seed: int, tally: Tally) -> None:
    """Compare the set of valid image sizes with torch: every height, every width, and some pairs."""
    from cnnspec.testing.oracle import Unsound, compare_sizes_with_torch

    drawn = _draw_spec(seed, tally)
    if drawn is None:
        return
    _, graph, rng = drawn
    _, high, wide = graph.input_shape
    side = range(1, _SIDE + 1)
    pairs = [(rng.randint(1, _SIDE), rng.randint(1, _SIDE)) for _ in range(_SIDE // 2)]
    try:
        accepted, rejected = compare_sizes_with_torch(
            graph, [*((h, wide) for h in side), *((high, w) for w in side), *pairs]
        )
    except Unsound as error:
        tally.wrong.append(f"seed {seed}: {error}")
        return
    tally.counts["sizes that torch accepts"] += accepted
    tally.counts["sizes that torch rejects"] += rejected
    tally.counts["specs that reject some"] += rejected > 0


def faults(seed: int, tally: Tally) -> None:
    """Check that a spec with one planted error is rejected at the right line, with working fixes."""
    faulty = draw_faulty(random.Random(seed).randint)
    counts = tally.counts
    counts["specs"] += 1
    counts[f"planted {faulty.code}"] += 1
    errors = _errors(check(faulty.text))
    if not errors:
        tally.wrong.append(f"seed {seed}: {faulty.code} in line {faulty.lines[0]} is accepted")
        return
    counts["first error on the statement"] += faulty.holds(errors[0].line)
    counts["first error of the code"] += errors[0].code == faulty.code
    counts["errors"] += len(errors)
    counts["errors with a help"] += sum(error.help is not None for error in errors)
    for error in errors:
        known = {(other.code, other.message) for other in errors if other is not error}
        for fix in error.fixes:
            counts["edits"] += 1
            left = _errors(check(fix.apply(faulty.text)))
            counts["edits that fix all errors"] += not left
            if any((other.code, other.message) not in known for other in left):
                tally.wrong.append(f"seed {seed}: an edit for {error.code} leaves {left[0].code}")


def texts(seed: int, tally: Tally) -> None:
    """Check that no text makes a command raise, or exceed the limits on time and memory."""
    kind, text = draw_text(random.Random(seed).randint)
    _run_on_text(f"seed {seed}, {kind}", text, tally)
    tally.counts[f"kind {kind if kind not in REPETITIONS else 'repetitive'}"] += 1


def repetitions(seed: int, tally: Tally) -> None:
    """Check a text of maximum length that repeats one kind of line. `seed` is the index of the kind."""
    name = list(REPETITIONS)[seed % len(REPETITIONS)]
    _run_on_text(name, REPETITIONS[name].text(), tally)


def _run_on_text(where: str, text: str, tally: Tally) -> None:
    tally.counts["texts"] += 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.cnn"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        tally.counts["valid texts"] += not _run_commands(where, path, tally)


def _run_commands(where: str, path: Path, tally: Tally) -> bool:
    """Run all commands on a file, record their time and memory, and return whether `check` fails."""
    outcomes = [*run_all(path)]
    tally.counts["commands"] += len(outcomes)
    for outcome in outcomes:
        tally.note("seconds of one command", outcome.seconds, f"{where}: {outcome.command}")
        tally.note(f"seconds of {outcome.command}", outcome.seconds, where)
        tally.note("MiB during one command", outcome.memory / 2**20, f"{where}: {outcome.command}")
        tally.wrong += [f"{where}: {violation}" for violation in outcome.violations()]
    return outcomes[0].failed


def bombs(seed: int, tally: Tally) -> None:
    """Check that an attack is rejected, and that no command exceeds the limits on it. `seed` is its index.

    A heavy spec is valid, and its commands take the most time.
    """
    name = list({**BOMBS, **HEAVY})[seed % (len(BOMBS) + len(HEAVY))]
    with tempfile.TemporaryDirectory() as folder:
        path = {**BOMBS, **HEAVY}[name](Path(folder))
        tally.counts["heavy specs" if name in HEAVY else "bombs"] += 1
        failed = _run_commands(name, path, tally)
        if name in HEAVY:
            tally.counts["valid heavy specs"] += not failed
            return
        if not failed:
            tally.wrong.append(f"{name}: is accepted")
            return
        tally.counts["rejected"] += 1
        try:
            errors = _errors(compile_file(path).diagnostics)
        except CnnspecError as error:
            errors = _errors(error.diagnostics)
        tally.counts["by a limit"] += errors[0].code in ("E0402", "E0403", "E0404", "E0405")


def bounds(seed: int, tally: Tally) -> None:
    """Train a spec with an argument at or beyond its bounds. `seed` is the index of the case.

    The first 8,000 contain all single arguments, the others are pairs.
    """
    from cnnspec.testing.bounds import cases, try_case

    if seed >= len(cases()):
        return
    case = cases()[seed]
    what, about, call = try_case(seed)
    tally.counts["cases"] += 1
    tally.counts[what] += 1
    if what == "ended with a named error":
        tally.counts[f"{what} {about[:5]}"] += 1
    tally.note("seconds of one case", call.seconds, case.name)
    tally.note("MiB of one case", call.bytes / 2**20, case.name)
    if what == "wrong":
        tally.wrong.append(f"case {seed}, {case.name}: {about}")


# --- runs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """A measurement.

    Attributes:
        measure: Adds the outcome of one seed to a tally.
        count: The number of seeds of a run.
        long: The number of seeds of a long run.
        shares: Ratios that must be reached: `part`, `whole`, and the minimum percentage.
        torch: Whether torch is the oracle.
    """

    measure: Callable[[int, Tally], None]
    count: int
    long: int
    shares: tuple[tuple[str, str, float], ...] = ()
    torch: bool = False


MEASUREMENTS: dict[str, Measurement] = {
    "valid": Measurement(valid, 10_000, 200_000, torch=True),
    "constructs": Measurement(constructs, 10_000, 200_000),
    "sets": Measurement(sets, 2_000, 20_000, torch=True),
    "faults": Measurement(
        faults, 5_000, 50_000, (("first error on the statement", "specs", 99), ("errors with a help", "errors", 90))
    ),
    "texts": Measurement(texts, 20_000, 400_000),
    "repetitions": Measurement(repetitions, len(REPETITIONS), len(REPETITIONS)),
    "bombs": Measurement(bombs, len(BOMBS) + len(HEAVY), len(BOMBS) + len(HEAVY)),
    "bounds": Measurement(bounds, 8_000, 16_000, torch=True),
}


def _run_chunk(name: str, first: int, last: int) -> Tally:
    """Measure a range of seeds, in its own process."""
    measurement, tally = MEASUREMENTS[name], Tally()
    if measurement.torch:
        import torch

        torch.set_num_threads(1)
    if measurement.measure in (texts, repetitions, bombs):
        warm_up()
    for seed in range(first, last):
        measurement.measure(seed, tally)
    tally.note("MiB of memory of a process", peak_memory() / 2**20, f"seeds {first} to {last - 1}")
    return tally


def run(
    name: str,
    count: int,
    seed: int = 0,
    processes: int = 1,
    progress: Callable[[int], None] = lambda _: None,
    tally: Tally | None = None,
) -> Tally:
    """Run a measurement.

    Args:
        name: A key of `MEASUREMENTS`.
        count: The number of seeds.
        seed: The first seed.
        processes: The number of processes that share the seeds.
        progress: Called with the number of finished seeds.
        tally: Receives the counts, for callers that read them before the end.
    """
    tally, done = tally or Tally(), 0
    shares = [(first, min(first + _CHUNK, seed + count)) for first in range(seed, seed + count, _CHUNK)]
    if processes <= 1:
        for first, last in shares:
            tally.add(_run_chunk(name, first, last))
            done += last - first
            progress(done)
        return tally
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            for (first, last), found in zip(
                shares, pool.map(_run_chunk, [name] * len(shares), *zip(*shares, strict=True)), strict=True
            ):
                tally.add(found)
                done += last - first
                progress(done)
        finally:
            pool.shutdown(cancel_futures=True)
    return tally


def judge(name: str, tally: Tally) -> list[str]:
    """Return the violations of a run."""
    found = list(tally.wrong)
    for part, whole, least in MEASUREMENTS[name].shares:
        share = 100 * tally.counts[part] / max(tally.counts[whole], 1)
        if share < least:
            found.append(f"{part}: {share:.2f} % of {whole}, less than {least:g} %")
    if tally.counts["specs"] >= 10_000 and name in ("valid", "constructs"):
        for construct in FREQUENT:
            if tally.counts[f"with `{construct}`"] * 20 < tally.counts["specs"]:
                found.append(f"`{construct}` occurs in fewer than 5 % of the specs")
    return found


def report(name: str, tally: Tally) -> str:
    """Format the counts of a run, one per line."""
    lines = [f"{key:<40} {count:>12,}" for key, count in sorted(tally.counts.items()) if not key.startswith("with `")]
    if any(key.startswith("with `") for key in tally.counts):
        rare = sorted((tally.counts[f"with `{construct}`"], construct) for construct in CONSTRUCTS)
        lines += ["specs with each construct:", *wrap(", ".join(f"`{key}` {count:,}" for count, key in rare), 110)]
    for part, whole, _ in MEASUREMENTS[name].shares:
        share = 100 * tally.counts[part] / max(tally.counts[whole], 1)
        lines.append(f"{part + ', % of ' + whole:<40} {share:>12.2f}")
    lines += [f"{'maximum ' + key:<40} {value:>12.3f}  {where}" for key, (value, where) in tally.greatest.items()]
    return "\n".join([f"{name}:", *(f"  {line}" for line in lines)])
