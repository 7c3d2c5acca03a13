"""Options and fixtures of the whole suite."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the tests marked full, which take long")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="long; run with --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
