"""What was drawn, as matplotlib knows it."""

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch):
    """The figures that were written to a file so far."""
    written, save = [], Figure.savefig

    def record(self, *args, **kwargs):
        save(self, *args, **kwargs)
        written.append(self)

    monkeypatch.setattr(Figure, "savefig", record)
    return written
