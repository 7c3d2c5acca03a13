"""Which process of a training this is, and where its run goes."""

import pytest

from vssm._ranks import is_first_process, job_id, launched_together, rank
from vssm.inference.run_dir import default_path

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "3", "LOCAL_RANK": "0", "GROUP_RANK": "1", "WORLD_SIZE": "6"}
SLURM = {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "1234", "SLURM_NODEID": "1"}


@pytest.mark.parametrize(
    ("environment", "number", "together", "job"),
    [
        ({}, 0, False, None),
        ({"LOCAL_RANK": "1"}, 1, False, None),
        ({"NODE_RANK": "1"}, 1, True, None),
        ({"NODE_RANK": "1", "LOCAL_RANK": "1"}, 2, True, None),
        (TORCHRUN, 3, True, None),
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "mine"}, 3, True, "mine"),
        (SLURM, 5, True, "1234"),
        (SLURM | {"SLURM_JOB_NAME": "interactive"}, 0, False, None),
        (SLURM | TORCHRUN | {"RANK": "0"}, 0, True, None),
    ],
)
def test_launchers(monkeypatch, tmp_path, environment, number, together, job):
    """The first process of the second machine is not the first; torchrun inside a SLURM job counts by torchrun."""
    for name in {**TORCHRUN, **SLURM, "NODE_RANK": ""}:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (rank(), launched_together(), job_id()) == (number, together, job)
    assert is_first_process() == (number == 0)
    (tmp_path / "run").mkdir()
    expected = f"run-{job}" if job else "run" if together else "run-2"
    assert default_path(tmp_path / "run") == tmp_path / expected, "all processes of a job agree on a name"
