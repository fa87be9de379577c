"""Run a command in several processes that share its work: on the devices of this machine, or on a cluster of Ray.

Each process is the same command. The processes of a comparison share its folder, those of a sweep its storage. So this
module starts and stops processes, and schedules nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from cnnspec.cli.app import ARGUMENTS
from cnnspec.cli.options import one_of
from cnnspec.diagnostics import CnnspecError, counted, echo, failure, one_line
from cnnspec.resources import available_cores, machine_memory

if TYPE_CHECKING:
    from cnnspec.ir import Graph

Jobs = Annotated[
    str, typer.Option(metavar="N", help="Runs at a time, or auto: one per free GPU; on a CPU, by cores and memory.")
]
Launcher = Annotated[str, typer.Option(metavar="NAME", help="Where the runs of --jobs start: local or ray.")]

WORKER_VARIABLE = "CNNSPEC_WORKER"
"""The environment variable with the number of a process that `--jobs` has started."""
FIXED_BYTES = 1 << 30
"""Memory of a run besides its tensors: the interpreter, the libraries and the images."""
USED_FRACTION = 0.2
"""The fraction of the memory of a GPU that another program uses if the GPU is not free."""
RETRIES = 3
"""How often Ray starts a process again that was killed."""


def is_worker() -> bool:
    """Return whether `--jobs` has started this process. Its output is not that of the command."""
    return WORKER_VARIABLE in os.environ


@dataclass(frozen=True)
class Plan:
    """The processes to start.

    Attributes:
        environments: The environment variables that select the device of each.
        text: A description.
    """

    environments: tuple[Mapping[str, str], ...]
    text: str


def share_work(
    context: typer.Context, jobs: str, launcher: str, graphs: Sequence[Graph], runs: int, accelerator: str
) -> int:
    """Run the command of a context in several processes, and return when all of them have ended.

    The calling process then does what is left, which is to print the result unless a process has failed.

    Args:
        context: The command.
        jobs: The number of processes, or `auto`.
        launcher: `local` or `ray`.
        graphs: The networks to train.
        runs: The number of runs, at most.
        accelerator: The device, as for Lightning.

    Returns:
        0, or 128 plus the number of the signal that has stopped the processes.

    Raises:
        BadParameter: An option has another value.
        CnnspecError: E0507 if Ray is not installed, E0524 if its cluster cannot be used.
    """
    one_of("--launcher", launcher, ("local", "ray"))
    count = None if jobs == "auto" else int(jobs) if jobs.isascii() and jobs.isdecimal() and len(jobs) < 5 else 0
    if count == 0:
        raise typer.BadParameter(f"`{jobs}` is neither a number of runs nor auto", param_hint="--jobs")
    if is_worker() or (count == 1 and launcher == "local"):
        return 0
    args: list[str] = context.meta[ARGUMENTS]
    if launcher == "ray":
        with redirect_stdout(sys.stderr):  # where Ray writes messages
            return _run_on_ray(args, count, runs, accelerator)
    plan = plan_jobs(count, graphs, runs, accelerator)
    echo(f"jobs: {plan.text}", file=sys.stderr)
    return 0 if len(plan.environments) == 1 else _run_here(args, plan)


# --- this machine ---------------------------------------------------------------------------------


def plan_jobs(count: int | None, graphs: Sequence[Graph], runs: int, accelerator: str) -> Plan:
    """Choose the number of processes and the device of each.

    Args:
        count: The number that the user wants, or None.
        graphs: The networks to train.
        runs: The number of runs.
        accelerator: The device, as for Lightning.
    """
    from cnnspec.training.loop.machine import device_of

    kind = device_of(accelerator).type
    if kind == "cuda":
        gpus, busy = free_gpus()
        own = count or min(len(gpus) or 1, runs)
        gpus = gpus or busy
        places = [gpus[place % len(gpus)] for place in range(own)]
        text = f"{own} at a time on {counted(min(own, len(gpus)), 'GPU')}: {', '.join(gpus[:own])}"
        if busy and gpus is not busy:
            text += f" (in use: {', '.join(busy)})"
        return Plan(tuple({"CUDA_VISIBLE_DEVICES": gpu} for gpu in places), text)
    if kind != "cpu":
        return Plan(({},) * (count or 1), f"{count or 1} at a time on {kind}")
    cores, needed = available_cores(), max(map(_run_bytes, graphs))
    fitting = max(1, machine_memory() // needed)
    own = count or min(cores, fitting, runs)
    threads = max(1, cores // own)
    text = (
        f"{own} at a time on the CPU, {counted(threads, 'thread')} each: {counted(cores, 'core')},"
        f" memory for {fitting} (about {needed / 2**30:.1f} GiB each), {counted(runs, 'run')}"
    )
    return Plan(({"OMP_NUM_THREADS": str(threads)},) * own, text)


def _run_bytes(graph: Graph) -> int:
    """Estimate the memory of a run on a CPU."""
    from cnnspec.training.runs.placement import memory

    return memory(graph, graph.recipe, 0)["total"] + FIXED_BYTES


def free_gpus() -> tuple[list[str], list[str]]:
    """Return the GPUs that this process may use: those that are free, and those that others use.

    Memory that another program has allocated means that a GPU is in use. Without `nvidia-smi`, all of them are free.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible is not None else list(map(str, range(torch.cuda.device_count())))
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        rows = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
        used = {
            name: float(mine) / float(total)
            for index, uuid, mine, total in ([part.strip() for part in row.split(",")] for row in rows)
            for name in (index, uuid)
        }
    except (OSError, subprocess.SubprocessError, ValueError, ZeroDivisionError):
        used = {}
    gpus = [gpu.strip() for gpu in gpus if gpu.strip()]
    free = [gpu for gpu in gpus if used.get(gpu, 0.0) < USED_FRACTION]
    return free, [gpu for gpu in gpus if gpu not in free]


def _run_here(args: Sequence[str], plan: Plan) -> int:
    with _signals() as received:
        workers = [_start(args, number, variables) for number, variables in enumerate(plan.environments, 1)]
        readers = [
            threading.Thread(target=_copy_lines, args=(worker.stderr, number), daemon=True)
            for number, worker in enumerate(workers, 1)
        ]
        for reader in readers:
            reader.start()
        sent = 0
        while any(worker.poll() is None for worker in workers):
            unsent = received[sent:]
            for number in unsent:
                for worker in workers:
                    with suppress(ProcessLookupError):
                        worker.send_signal(number)
            sent += len(unsent)  # another signal may have arrived meanwhile
            time.sleep(0.1)
        for reader in readers:
            reader.join(1)
    if received:
        return 128 + received[0]
    ended = [
        f"{number} with exit code {worker.returncode}" for number, worker in enumerate(workers, 1) if worker.returncode
    ]
    if ended:
        echo(f"processes have ended: {', '.join(ended)}; this process does what is left", file=sys.stderr)
    return 0


def _start(args: Sequence[str], number: int, variables: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cnnspec", *args],
        env={**os.environ, **variables, WORKER_VARIABLE: str(number)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches this process only, which passes it on
    )


def _copy_lines(stream: IO[str] | None, number: int) -> None:
    for line in stream or ():
        with suppress(OSError, ValueError):
            echo(f"[{number}] {line.rstrip()}", file=sys.stderr)


@contextmanager
def _signals() -> Generator[list[int]]:
    """Collect the signals that stop a run, instead of obeying them."""
    from cnnspec.training.loop.signals import HANGUP, handled_signals

    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        if number != HANGUP or not received:  # a terminal that is closed sends it, and then its shell again
            received.append(number)

    before = {number: signal.signal(number, receive) for number in handled_signals()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- Ray ------------------------------------------------------------------------------------------


def _run_on_ray(args: Sequence[str], count: int | None, runs: int, accelerator: str) -> int:
    """Run the command as tasks of Ray, which restarts those whose process or machine dies."""
    try:
        ray: Any = import_module("ray")  # an extra, which the type checker may not find
    except ModuleNotFoundError:
        raise failure(
            "E0507", "`--launcher ray` requires `ray`, which is not installed",
            help="install it with `pip install 'cnnspec[ray]'`",
        ) from None  # fmt: skip
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # reports to the developers of Ray
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    try:
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        ray.init(logging_level=logging.ERROR, log_to_driver=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise _ray_error("cannot connect to the cluster of Ray", error) from None
    try:
        found = ray.cluster_resources()
        gpus, cores = int(found.get("GPU", 0)), int(found.get("CPU", 0))
        on_gpus = gpus > 0 and accelerator in ("auto", "gpu", "cuda")
        jobs = count or max(1, min(gpus if on_gpus else cores, runs))
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        smallest = min((int(node["CPU"]) for node in alive if node.get("CPU", 0) >= 1), default=1)
        needs: dict[str, Any] = {"num_gpus": 1} if on_gpus else {"num_cpus": max(1, min(cores // jobs, smallest))}
        place = counted(gpus, "GPU") if on_gpus else counted(cores, "core")
        echo(f"jobs: {jobs} at a time on Ray: {counted(len(alive), 'node')}, {place}", file=sys.stderr)
        task: Any = ray.remote(max_retries=RETRIES, max_calls=1, **needs)(_work)
        with _signals() as received:
            left = [task.remote(list(args), os.getcwd(), number) for number in range(1, jobs + 1)]
            return _wait_for(ray, left, received)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that something listens at the address of a cluster. Ray tries for minutes.

    Raises:
        OSError: Nothing does.
        ValueError: It is not an address.
    """
    if address in ("", "auto", "local") or "://" in address:
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
        raise ValueError(f"RAY_ADDRESS is `{address[:80]}`, not HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _wait_for(ray: Any, left: list[Any], received: list[int]) -> int:
    """Wait for tasks, and pass on signals: the first one stops a run cleanly, the second one at once.

    Raises:
        CnnspecError: E0524 if Ray could not complete any of them.
    """
    sent, lost, jobs = 0, [], len(left)
    while left:
        ready, left = ray.wait(left, timeout=0.5)
        if len(received) > sent:
            sent = len(received)
            for one in left:
                ray.cancel(one, force=sent > 1)
        for one in ready:
            try:
                if (code := ray.get(one)) and not received:
                    echo(f"a process has ended with exit code {code}", file=sys.stderr)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error
                lost.append(f"{type(cause).__name__}: {one_line(cause, 200)}")
    if received:
        return 128 + received[0]
    for reason in dict.fromkeys(lost):
        echo(f"a process was lost: {reason}", file=sys.stderr)
    if len(lost) == jobs:
        help = "check that all nodes have cnnspec, and share the current folder; see the output of Ray above"
        raise failure("E0524", "Ray has lost all processes", notes=lost[:1], help=help)
    return 0


def _work(args: list[str], folder: str, number: int) -> int:
    """Run the command in a process of Ray, and return the exit code."""
    os.chdir(folder)
    os.environ[WORKER_VARIABLE] = str(number)
    sys.argv = ["cnnspec", *args]
    from cnnspec.cli import main

    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)


def _ray_error(message: str, error: Exception) -> CnnspecError:
    help = "start a cluster with `ray start --head`, and name it by RAY_ADDRESS; or omit `--launcher ray`"
    return failure("E0524", message, notes=[one_line(error, 300)], help=help)
