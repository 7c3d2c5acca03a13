"""Which process of a training this is, from what its launcher put into the environment. Standard library only.

Three launchers are known, as Lightning knows them: torchrun, SLURM's srun, and Lightning itself, which runs the
command again for every further device of a machine.
"""

import os

__all__ = ["is_first_process", "job_id", "launched_together", "rank"]


def rank() -> int:
    """The number of this process among all of the training, 0 where there is one only.

    Processes that Lightning started know their number on their own machine: those of a further machine (NODE_RANK
    above 0) count from 1, which is enough to tell them from the first.
    """
    if _by_torchrun():
        return int(os.environ["RANK"])
    if _by_slurm():
        return int(os.environ["SLURM_PROCID"])
    local = int(os.environ.get("LOCAL_RANK", "0"))
    node = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")))
    return local if node == 0 else local + 1


def is_first_process() -> bool:
    """Whether this process, alone among those of a training, writes and prints."""
    return rank() == 0


def launched_together() -> bool:
    """Whether a launcher started all processes at once, so that the further ones inherit nothing from the first."""
    return _by_torchrun() or _by_slurm() or os.environ.get("NODE_RANK", "0") != "0"


def job_id() -> str | None:
    """What the launcher calls this job, the same in all of its processes; None where it has no name of its own."""
    if _by_torchrun():
        found = os.environ["TORCHELASTIC_RUN_ID"]
        return None if found == "none" else found
    return os.environ.get("SLURM_JOB_ID") if _by_slurm() else None


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def _by_slurm() -> bool:
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ and not interactive
