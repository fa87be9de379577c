"""Train on two hosts, which are network namespaces of this machine, and compare the weights with those of one process.

    python tests/harness/two_hosts.py [--processes N] [--keep FOLDER]

Each host runs `torchrun --nnodes 2`. The hosts are connected by a virtual Ethernet cable and see no other network. This
needs root and `ip` of iproute2; otherwise the script says why and exits with code 77.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.runs import DEEPER, tiny

HOME = Path(__file__).parents[2]
SPEC = tiny(
    "data fashion_mini val=1000; augment hflip | random_crop pad=2; optimizer sgd lr=0.1 momentum=0.9; "
    "schedule cosine warmup=0.5; batch 100; epochs 1",
    layers=DEEPER,
)
STEPS = 50
TOLERANCE = 1e-5
SKIPPED = 77


def reason_against() -> str | None:
    """Return why this machine cannot create network namespaces, None if it can."""
    if shutil.which("ip") is None:
        return "`ip` of iproute2 is not installed"
    name = f"cnnspec-probe-{os.getpid()}"
    probe = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"cannot create a network namespace: {probe.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=False)
    return None


@contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Create two connected network namespaces, and delete them in the end. Host i has the address 10.77.0.(i + 1)."""
    names = [f"cnnspec-{os.getpid()}-{number}" for number in range(2)]
    cables = [f"cnn{os.getpid() % 100000}{side}" for side in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cables[0], "type", "veth", "peer", "name", cables[1])
        for number, (name, cable) in enumerate(zip(names, cables, strict=True), 1):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "name", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def command(*options: str) -> list[str]:
    fixed = ("--accelerator", "cpu", "--memory-format", "channels_last", "--no-plots", "--offline")
    return ["-m", "cnnspec", "build", "tiny.cnn", "--train", *fixed, *options]


def start(words: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    settings = {**os.environ, "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", **environment}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(words, cwd=folder, env=settings, text=True, **streams)


def on_host(number: int, name: str, processes: int) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={number}"]
    torchrun += [f"--nproc-per-node={processes}", "--master-addr=10.77.0.1", "--master-port=29500"]
    return ["ip", "netns", "exec", name, *torchrun]


def weights(folder: Path) -> dict[str, object]:
    from cnnspec.training.loop.checkpoints import Checkpoints

    state, _ = Checkpoints(folder / "runs" / "tiny" / "1" / "checkpoints").load()
    assert state["progress"]["step"] == STEPS, state["progress"]["step"]
    return state["state_dict"]


def compare(processes: int, folder: Path) -> float:
    """Train alone and on two hosts, and return the largest difference of a weight."""
    alone, together = folder / "alone", folder / "together"
    for place in (alone, together):
        place.mkdir(parents=True)
        (place / "tiny.cnn").write_text(SPEC)
    begin = time.monotonic()
    output, _ = (process := start([sys.executable, *command()], alone)).communicate(timeout=300)
    assert process.returncode == 0, output
    middle = time.monotonic()
    with two_hosts() as names:
        runs = [
            start([*on_host(n, name, processes), *command()], together, GLOO_SOCKET_IFNAME="eth0")
            for n, name in enumerate(names)
        ]
        try:
            outputs = [run.communicate(timeout=300)[0] for run in runs]
        finally:
            for run in runs:
                run.kill()
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    one, two = weights(alone), weights(together)
    difference = max(float((one[key].double() - two[key].double()).abs().max()) for key in one)  # type: ignore[attr-defined]
    results = [json.loads((place / "runs/tiny/1/result.json").read_text()) for place in (alone, together)]
    print(f"alone: test accuracy {results[0]['test_acc']}, {middle - begin:.1f} s")
    print(f"2 hosts x {processes}: test accuracy {results[1]['test_acc']}, {time.monotonic() - middle:.1f} s")
    print(f"largest difference of a weight after {STEPS} steps: {difference:.2e}")
    return difference


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=1, help="processes per host")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs, which is kept")
    given = parser.parse_args()
    if (reason := reason_against()) is not None:
        print(f"skipped: {reason}")
        return SKIPPED
    with tempfile.TemporaryDirectory() as temporary:
        difference = compare(given.processes, given.keep or Path(temporary))
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
