"""Measure the soundness of the checker: `python -m cnnspec.testing valid --count 10000`."""

from __future__ import annotations

import argparse
import sys
import time

from cnnspec.testing.soundness import MEASUREMENTS, Tally, judge, report, run

_SHOWN = 20


def main() -> int:
    """Run the measurement named on the command line. Return 1 if it finds anything wrong."""
    parser = argparse.ArgumentParser(prog="python -m cnnspec.testing", description=__doc__)
    parser.add_argument("measurement", choices=[*MEASUREMENTS, "all"])
    parser.add_argument("--count", type=int, help="number of specs, texts or bombs")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--long", action="store_true", help="use the count of a long run")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    failed = False
    for name in MEASUREMENTS if options.measurement == "all" else [options.measurement]:
        measurement = MEASUREMENTS[name]
        count = options.count or (measurement.long if options.long else measurement.count)
        start = time.perf_counter()

        def progress(done: int, name: str = name, count: int = count) -> None:
            if sys.stderr.isatty() or done == count or done % 5_000 == 0:
                print(f"{name}: {done:,} of {count:,}", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)

        tally, stopped = Tally(), False
        try:
            run(name, count, options.seed, options.processes, progress, tally)
        except KeyboardInterrupt:
            stopped = True
        wrong = judge(name, tally)
        print(report(name, tally))
        print(f"  {'violations':<40} {len(wrong):>12,}")
        print(f"  {'seconds':<40} {time.perf_counter() - start:>12.1f}", flush=True)
        for line in wrong[:_SHOWN]:
            print(f"  violation: {line}")
        failed |= bool(wrong)
        if stopped:
            print(f"stopped before all {count:,} were measured", file=sys.stderr)
            return 130
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
