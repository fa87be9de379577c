"""Time of `cnnspec check` as a separate process, compared with a process that only imports lark, pydantic and rich.

The processes run in turns, and medians of wall time and of processor time are printed. All of them read bytecode that
a warm-up turn wrote, like an installed package. `--vs` adds another checkout to the turns, and `--files` a process that
checks many small specs.

    python benchmarks/start_speed.py --turns 15 --vs ../before --files 1000
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parents[1]
LIBRARIES = "import lark, pydantic, rich"
IMPORTS = ("typer", "pydantic.main", "cnnspec.ir", "cnnspec.compiler")
SPEC = """network small{number}
input 3x32x32
param width = {width}

stem conv 3x3 width | bn | relu
repeat 2 {{
    add {{
        in
        {{ conv 3x3 width | bn | relu | conv 3x3 width | bn }}
    }}
    relu
}}
head global_avgpool | flatten | linear 10
"""


def run(command: Sequence[str], environment: dict[str, str], folder: str) -> tuple[float, float]:
    """Run a process in a folder; return its seconds of wall time and of processor time."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall, usage.ru_utime + usage.ru_stime


def write_specs(folder: Path, count: int) -> list[str]:
    """Write small specs that differ from each other, and return their paths."""
    paths = [folder / f"small{number}.cnn" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(SPEC.format(number=number, width=8 + number % 56), encoding="utf-8")
    return [str(path) for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15, help="number of turns; medians are printed")
    parser.add_argument(
        "--vs", type=Path, action="append", default=[], help="another checkout to run in the same turns"
    )
    parser.add_argument("--files", type=int, default=0, help="also check this many small specs in one process")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = f"{scratch}/bytecode"
        ways = {LIBRARIES: ([sys.executable, "-c", LIBRARIES], environment)}
        check = [sys.executable, "-m", "cnnspec", "check"]
        specs = write_specs(Path(scratch), args.files)
        for checkout in (HERE, *(path.resolve() for path in args.vs)):
            here = {**environment, "PYTHONPATH": str(checkout)}
            name = "" if checkout == HERE else f" ({checkout.name})"
            ways[f"check resnet20{name}"] = ([*check, "resnet20"], here)
            if specs:
                ways[f"check {len(specs):,} files{name}"] = ([*check, *specs], here)
            if checkout == HERE:
                ways |= {f"import {module}": ([sys.executable, "-c", f"import {module}"], here) for module in IMPORTS}
        for way in ways.values():
            run(*way, scratch)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(args.turns):
            for name in list(ways) if turn % 2 else reversed(list(ways)):
                seconds[name].append(run(*ways[name], scratch))
    print(f"Python {sys.version.split()[0]}, {args.turns} turns, medians")
    print(f"{'process':34} {'wall':>11} {'ratio':>6} {'processor':>11} {'ratio':>6}")
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seconds.items()
    }
    base = medians[LIBRARIES]
    for name, (wall, processor) in medians.items():
        ratios = wall / base[0], processor / base[1]
        print(f"{name:34} {wall * 1e3:8.0f} ms {ratios[0]:6.2f} {processor * 1e3:8.0f} ms {ratios[1]:6.2f}")


if __name__ == "__main__":
    main()
