"""Compare parameter and operation counts with torch, on generated and shipped specs.

python benchmarks/counts.py --specs 500
python benchmarks/counts.py --specs 2000 --seed 1 fields
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import UnsatisfiedAssumption

from cnnspec import load, loads
from cnnspec.analysis.cost import count
from cnnspec.semantics.loader import shipped_specs
from cnnspec.testing import specs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from analysis import test_cost as counts
from analysis import test_receptive_field as fields

CHECKS: dict[str, tuple[str, Callable[[str], None]]] = {
    "flops": ("operations forward and backward", lambda text: counts.hold_against_flop_counter(loads(text))),
    "saved": ("activations saved for the backward pass", counts.hold_against_saved_tensors),
    "peak": ("peak of memory in inference", counts.hold_against_live_storages),
    "fields": ("receptive field of every module", fields.hold_against_gradients),
}
ROUND = 100
"""Examples per seed; examples of one seed resemble each other more than those of another."""


def run(check: Callable[[str], None], amount: int, start: int) -> tuple[int, list[str]]:
    """Return the number of different specs compared with torch, and those that differ."""
    seen: set[str] = set()
    wrong: list[str] = []

    for number in range(start, start + 100 * amount // ROUND):

        @seed(number)
        @given(specs())
        @settings(
            max_examples=ROUND,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def one(text: str) -> None:
            if text in seen or len(seen) >= amount:
                return
            try:
                check(text)
            except AssertionError as error:
                wrong.append(f"{error}\n{text}")
            except UnsatisfiedAssumption:
                return
            seen.add(text)

        one()
        if len(seen) >= amount:
            break
    return len(seen), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", choices=[[], *CHECKS, "shipped"], help="all without it")
    parser.add_argument("--specs", type=int, default=500, help="generated specs for each check")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = options.checks or [*CHECKS, "shipped"]
    failed = 0
    for name in chosen:
        begin = time.perf_counter()
        if name == "shipped":
            wrong = [spec for spec in sorted(shipped_specs()) if not flops_agree(spec)]
            print(f"operations of shipped specs: {len(shipped_specs())} networks, {len(wrong)} differ {wrong or ''}")
            for spec in counts.KEPT:
                graph = load(spec)
                own, kept = count(graph).saved_total.at(2), counts.saved_by_torch(graph, 2)
                print(f"saved by {spec}, 2 images: {own:,} bytes, torch {kept:,}, {own / kept - 1:+.4%}")
                failed += own != kept
        else:
            title, check = CHECKS[name]
            amount, wrong = run(check, options.specs, options.seed)
            print(f"{title}: {amount:,} specs, {len(wrong)} differ, {time.perf_counter() - begin:.0f} s", flush=True)
            print("\n\n".join(wrong), file=sys.stderr)
        failed += len(wrong)
    sys.exit(failed > 0)


def flops_agree(name: str) -> bool:
    try:
        counts.hold_against_flop_counter(load(name))
    except AssertionError:
        return False
    return True


if __name__ == "__main__":
    main()
