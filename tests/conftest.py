"""Options and fixtures of the whole suite."""

import pytest
import torch

# The tensors are small, and on a busy machine two threads wait for each other many times longer than they work.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the tests marked full, which take long")


# Where two processes share the files, the last ones should not be the longest; the first waits for processes of its
# own.
LONGEST = ("test_triton.py", "test_models.py", "test_docs.py", "test_contract.py", "test_goldens_spatial_mamba.py")


def pytest_collection_modifyitems(config, items):
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="long; run with --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def figures(monkeypatch):
    """The figures that matplotlib wrote to a file so far."""
    from matplotlib.figure import Figure

    written, save = [], Figure.savefig

    def record(self, *args, **kwargs):
        save(self, *args, **kwargs)
        written.append(self)

    monkeypatch.setattr(Figure, "savefig", record)
    return written
