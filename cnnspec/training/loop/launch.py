"""Read how this process was started: alone, or as one of several by `torchrun`, `srun` or a cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pytorch_lightning.plugins.environments import ClusterEnvironment, SLURMEnvironment

from cnnspec.diagnostics import CnnspecError, failure

SHARED_FOLDER_VARIABLE = "CNNSPEC_RUN_FOLDER"
"""The environment variable that names the run folder for the processes that Lightning starts for other devices."""
JOIN_VARIABLE = "CNNSPEC_JOIN_SECONDS"
"""The environment variable with the time that processes wait for each other at the start, in seconds."""
JOIN_SECONDS = 600
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MAX_PROCESSES = 2**20


@dataclass(frozen=True)
class Launch:
    """The place of a process among those that were started together.

    Attributes:
        rank: The index of the process.
        world: The number of processes.
        local_rank: Its index on this machine.
        local_world: The number of processes on this machine, if it is known.
        node: The index of the machine.
        address: The host of the process with rank 0.
        port: The port through which the processes find each other.
        join_seconds: The time that they wait for each other at the start.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int | None
    node: int
    address: str
    port: int
    join_seconds: int = JOIN_SECONDS

    @property
    def place(self) -> str:
        return f"rank {self.rank} of {self.world}, through {self.address}:{self.port}"


def read_launch(variables: Mapping[str, str] = os.environ) -> Launch | None:
    """Return how this process was started, None if it is the only one or was started by Lightning.

    Raises:
        CnnspecError: E0524 if the environment variables are incomplete or invalid.
    """
    if SHARED_FOLDER_VARIABLE in variables and "RANK" not in variables:
        return None
    if "RANK" in variables:
        return _of_torchrun(variables)
    if "SLURM_PROCID" in variables and "SLURM_STEP_NUM_TASKS" in variables:  # the latter is set by `srun` only
        return _of_slurm(variables)
    return None


def local_processes(world: int) -> int:
    """Return how many of the `world` training processes run on this machine, as far as this process knows."""
    launch = read_launch()
    return world if launch is None else launch.local_world or launch.local_rank + 1


def is_main_process() -> bool:
    """Return whether this is the process that writes files, among all that train together."""
    launch = read_launch()
    if launch is not None:
        return launch.rank == 0
    return os.environ.get("LOCAL_RANK", "0") == "0" or SHARED_FOLDER_VARIABLE not in os.environ


def _of_torchrun(variables: Mapping[str, str]) -> Launch | None:
    if variables.get("WORLD_SIZE", "").strip() == "1":
        return None
    if missing := [name for name in _TORCHRUN if not variables.get(name, "").strip()]:
        names = ", ".join(f"`{name}`" for name in missing)
        raise _refusal(
            f"`RANK` is set, but not {names}",
            "start the processes with `torchrun`, set all of these variables, or unset `RANK`",
        )
    world = _number(variables, "WORLD_SIZE", 1, _MAX_PROCESSES)
    return Launch(
        _number(variables, "RANK", 0, world - 1),
        world,
        _number(variables, "LOCAL_RANK", 0, world - 1),
        _number(variables, "LOCAL_WORLD_SIZE", 1, world) if "LOCAL_WORLD_SIZE" in variables else None,
        _number(variables, "GROUP_RANK", 0, world - 1) if "GROUP_RANK" in variables else 0,
        variables["MASTER_ADDR"].strip(),
        _number(variables, "MASTER_PORT", 1, 65535),
        _join_seconds(variables),
    )


def _of_slurm(variables: Mapping[str, str]) -> Launch | None:
    world = _number(variables, "SLURM_STEP_NUM_TASKS", 1, _MAX_PROCESSES)
    if world == 1:
        return None
    nodes = (
        variables.get(name) for name in ("MASTER_ADDR", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    )
    address = next((found for found in nodes if found), None)
    if address is None:
        raise _refusal("SLURM names no nodes", "set `MASTER_ADDR` to the host of the first task")
    job = _number(variables, "SLURM_JOB_ID", 0, 2**63) if "MASTER_PORT" not in variables else 0
    tasks = variables.get("SLURM_STEP_TASKS_PER_NODE", variables.get("SLURM_NTASKS_PER_NODE", ""))
    return Launch(
        _number(variables, "SLURM_PROCID", 0, world - 1),
        world,
        _number(variables, "SLURM_LOCALID", 0, world - 1),
        int(tasks) if tasks.isdecimal() else None,  # `2(x3)` or `4,2`: not the same on all machines
        _number(variables, "SLURM_NODEID", 0, world - 1) if "SLURM_NODEID" in variables else 0,
        SLURMEnvironment.resolve_root_node_address(address),
        _number(variables, "MASTER_PORT", 1, 65535) if "MASTER_PORT" in variables else 15000 + job % 10000,
        _join_seconds(variables),
    )


def _join_seconds(variables: Mapping[str, str]) -> int:
    return _number(variables, JOIN_VARIABLE, 1, 10**6) if JOIN_VARIABLE in variables else JOIN_SECONDS


def _number(variables: Mapping[str, str], name: str, least: int, most: int) -> int:
    value = variables.get(name, "").strip()
    if value.isascii() and value.isdecimal() and len(value) < 20 and least <= int(value) <= most:
        return int(value)
    shown = f"is `{value[:40]}`" if name in variables else "is not set"
    raise _refusal(
        f"the environment variable `{name}` {shown}, not a number from {least} to {most}",
        "start the processes with `torchrun` or `srun`, which set it, or unset the variables of both",
    )


def _refusal(message: str, help: str) -> CnnspecError:
    return failure("E0524", message, help=help)


class LaunchedEnvironment(ClusterEnvironment):
    """Lightning's view of processes that were started together.

    Args:
        launch: The place of this process.
        device: The index of its device among those that it sees.
    """

    def __init__(self, launch: Launch, device: int) -> None:
        super().__init__()
        self._launch, self._device = launch, device

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self._launch.address

    @property
    def main_port(self) -> int:
        return self._launch.port

    @staticmethod
    def detect() -> bool:
        return read_launch() is not None

    def world_size(self) -> int:
        return self._launch.world

    def set_world_size(self, size: int) -> None:
        """Keep the number of processes that were started."""

    def global_rank(self) -> int:
        return self._launch.rank

    def set_global_rank(self, rank: int) -> None:
        """Keep the rank of the launch."""

    def local_rank(self) -> int:
        return self._device

    def node_rank(self) -> int:
        return self._launch.node
