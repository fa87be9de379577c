"""Test how a process reads from its environment that it is one of several."""

from __future__ import annotations

import random

import pytest
from harness.processes import variables

from cnnspec import CnnspecError
from cnnspec.training.loop.launch import JOIN_VARIABLE, Launch, read_launch

SRUN = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-09,12]", "SLURM_JOB_ID": "1234567",
}  # fmt: skip
STRANGE = ("", " ", "x", "-1", "1.5", "8", "99999999999999999999999", "\u0663", "1e3", "0x1", "None")


def test_torchrun():
    assert read_launch(variables(1, 4, 29500)) == Launch(1, 4, 1, 4, 0, "127.0.0.1", 29500)
    found = read_launch({**variables(1, 4, 29500), "GROUP_RANK": "1", "LOCAL_RANK": "0", JOIN_VARIABLE: "7"})
    assert found == Launch(1, 4, 0, 4, 1, "127.0.0.1", 29500, 7)


def test_variables_that_a_user_sets():
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    given = {name: value for name, value in variables(3, 8, 1234).items() if name in names}
    assert read_launch({**given, "LOCAL_RANK": "1"}) == Launch(3, 8, 1, None, 0, "127.0.0.1", 1234)
    for name in names[1:]:
        with pytest.raises(CnnspecError) as error:
            read_launch({key: value for key, value in given.items() if key != name})
        assert error.value.diagnostics[0].code == "E0524"
        assert f"`{name}`" in error.value.diagnostics[0].message


def test_srun():
    assert read_launch(SRUN) == Launch(5, 8, 1, None, 1, "gpu07", 19567)
    assert read_launch({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4", "MASTER_PORT": "5", "MASTER_ADDR": "a"}) == Launch(
        5, 8, 1, 4, 1, "a", 5
    )


@pytest.mark.parametrize(
    "alone",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"},  # of an sbatch script, without srun
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"LOCAL_RANK": "1", "WORLD_SIZE": "2", "CNNSPEC_RUN_FOLDER": "runs/tiny/1"},  # started by Lightning
    ],
)
def test_a_process_alone(alone: dict[str, str]):
    assert read_launch(alone) is None


@pytest.mark.parametrize("base", [variables(1, 2, 29500), SRUN], ids=["torchrun", "srun"])
def test_any_value_of_a_variable_is_read_or_an_error(base: dict[str, str]):
    """One to three variables are missing or have strange values."""
    rng = random.Random(0)
    outcomes = set()
    for _ in range(500):
        changed = dict(base)
        for name in rng.sample(sorted(base), rng.randint(1, 3)):
            if (value := rng.choice((*STRANGE, None))) is None:
                del changed[name]
            else:
                changed[name] = value
        try:
            found = read_launch(changed)
        except CnnspecError as error:
            outcomes.add(error.diagnostics[0].code)
        else:
            outcomes.add(type(found))
            assert found is None or (0 <= found.rank < found.world and 0 < found.port < 65536)
    assert outcomes == {"E0524", Launch, type(None)}
