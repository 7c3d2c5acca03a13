"""Trainings in several processes on the CPU, as a launcher such as torchrun starts them."""

import multiprocessing
import os
import socket
import time
import traceback

CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, in a process that starts the others: each begins at once.
CONTEXT.set_forkserver_preload(["vssm.train.fit", "sklearn.datasets", "tests.train.ranks"])


def run_ranks(work, world, *arguments, timeout=300, context=CONTEXT):
    """Calls `work(*arguments)` in `world` processes and waits for them. Raises AssertionError with the traceback of the
    first that fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reports = context.SimpleQueue()
    processes = [
        context.Process(target=_enter, args=(rank, world, port, reports, work, arguments), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    ends = time.monotonic() + timeout
    while any(process.exitcode is None for process in processes) and time.monotonic() < ends:
        if any(process.exitcode for process in processes):  # the others would wait for it
            break
        time.sleep(0.05)
    running = [process for process in processes if process.is_alive()]
    for process in running:
        process.kill()
        process.join()
    failures = []
    while not reports.empty():
        failures.append(reports.get())
    assert not failures, "\n".join(failures)
    assert all(process.exitcode == 0 for process in processes), [process.exitcode for process in processes]


def _enter(rank, world, port, reports, work, arguments):
    import torch

    torch.set_num_threads(1)
    if world > 1:
        launched = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ.update({name: str(value) for name, value in launched.items()})
    try:
        work(*arguments)
    except BaseException:
        reports.put(f"process {rank} of {world}:\n{traceback.format_exc()}")
        raise
