"""Export every shipped spec to every format, verify each file, and print totals.

    python tests/harness/export_specs.py [--to pt2,onnx] [--dynamic] [--openvino] [--results FILE] [SPEC...]

`--dynamic` exports with variable batches and image sizes. The smallest networks come first. Results are appended to a
file of JSON lines, and what it holds is not run again, so a run can be stopped and continued. All exports run in one
process, which is replaced when it has died or needs much memory. The exit code is 1 if one fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from cnnspec.compiler import compile_file
from cnnspec.diagnostics import CnnspecError
from cnnspec.semantics.loader import shipped_specs

ENDINGS = {"torch": "py", "pt2": "pt2", "onnx": "onnx"}
MAX_MEMORY = 4 * 2**30
"""Bytes after which the process is replaced by a new one."""


class Case(NamedTuple):
    spec: str
    form: str
    dynamic: bool


def export(case: Case, limit: int, openvino: bool) -> dict[str, Any]:
    """Export a spec; return the figures of the comparison, or an `error`."""
    from cnnspec.inference import export_network

    def stop(signum: int, frame: object) -> NoReturn:
        raise TimeoutError(f"more than {limit} s")

    signal.signal(signal.SIGALRM, stop)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{case.spec}.{ENDINGS[case.form]}"
        axes = ["batch", "size"] if case.dynamic else []
        try:
            signal.alarm(limit)
            done = export_network(case.spec, file, case.form, dynamic=axes)  # type: ignore[arg-type]
            found = {"seconds": done.seconds, "relative": done.relative, "images": done.images}
            found["bytes"] = sum(Path(path).stat().st_size for path in done.files)
            if openvino and case.form == "onnx":
                found["openvino"] = compare_openvino(file)
        except (CnnspecError, TimeoutError) as error:
            first = error.diagnostics[0] if isinstance(error, CnnspecError) else None
            return {"error": " - ".join([first.message, *first.notes[:1]]) if first else str(error)}
        finally:
            signal.alarm(0)
    return found


def compare_openvino(file: Path) -> float:
    """Return the largest difference of a logit between OpenVINO and ONNX Runtime, in relation to the largest one."""
    import numpy as np
    import onnxruntime
    import openvino

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    shape = [1 if position == 0 else size for position, size in enumerate(session.get_inputs()[0].shape)]
    shape = [64 if isinstance(size, str) else size for size in shape]
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    expected = session.run(None, {"images": images})[0]
    found = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def read(results: Path) -> dict[Case, dict[str, Any]]:
    """Return the results by case."""
    lines = map(json.loads, results.read_text("utf-8").splitlines()) if results.exists() else ()
    return {Case(*line["case"]): line for line in lines}


def append(results: Path, case: Case, found: dict[str, Any]) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"case": case, **found}) + "\n")


def work(cases: list[Case], results: Path, limit: int, openvino: bool) -> None:
    """Run the remaining cases until all are done, or much memory is in use."""
    for case in cases:
        append(results, case, export(case, limit, openvino))
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > MAX_MEMORY:
            return


def totals(found: dict[Case, dict[str, Any]]) -> Iterator[str]:
    """Yield a table of the formats, and what failed."""
    titles = "format", "sizes", "verified", "failed", "median seconds", "most seconds", "largest difference", "OpenVINO"
    yield f"| {' | '.join(titles)} |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    for form, dynamic in dict.fromkeys((case.form, case.dynamic) for case in found):
        group = {case.spec: each for case, each in found.items() if (case.form, case.dynamic) == (form, dynamic)}
        done = {spec: each for spec, each in group.items() if "error" not in each}
        slowest = max(done, key=lambda spec: done[spec]["seconds"], default=None)
        cells = [form, "any" if dynamic else "declared", str(len(done)), str(len(group) - len(done))]
        if slowest is not None:
            cells.append(f"{statistics.median(each['seconds'] for each in done.values()):.1f}")
            cells.append(f"{done[slowest]['seconds']:.1f} ({slowest})")
            for key in ("relative", "openvino"):
                value, spec = max(((each.get(key, 0.0), spec) for spec, each in done.items()), default=(0.0, ""))
                cells.append(f"{value:.1g} ({spec})" if value else "0" if key == "relative" else "")
        yield f"| {' | '.join(cells)} |"
    for case, each in found.items():
        if "error" in each:
            sizes = " with variable sizes" if case.dynamic else ""
            yield f"{case.spec} to {case.form}{sizes}: {each['error']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", default=[*shipped_specs()], metavar="SPEC")
    parser.add_argument("--to", default="torch,pt2,onnx")
    parser.add_argument("--dynamic", action="store_true", help="variable batches and image sizes")
    parser.add_argument("--openvino", action="store_true", help="also compare OpenVINO with ONNX Runtime")
    parser.add_argument("--limit", type=int, default=1200, help="seconds per export")
    parser.add_argument("--results", type=Path, help="the file of results")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        results = given.results or Path(folder) / "results.jsonl"
        costs = {spec: compile_file(spec).require_graph() for spec in given.specs}
        order = sorted(costs, key=lambda spec: costs[spec].macs / 2e9 + len(costs[spec].nodes) / 50)  # about seconds
        forms = [form for form in given.to.split(",") if not (given.dynamic and form == "torch")]
        cases = [Case(spec, form, given.dynamic) for spec in order for form in forms]
        if given.worker:
            work([case for case in cases if case not in read(results)], results, given.limit, given.openvino)
            return 0
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", "--results", str(results)]
        while remaining := [case for case in cases if case not in (before := read(results))]:
            done = subprocess.run(command)
            if len(read(results)) == len(before):
                append(results, remaining[0], {"error": f"the process ended with {done.returncode}"})
        found = {case: each for case, each in read(results).items() if case in set(cases)}
        print(*totals(found), sep="\n")
        return int(any("error" in each for each in found.values()))


if __name__ == "__main__":
    sys.exit(main())
