"""The choice of tiles: measured once, kept on disk, and left alone where it must be."""

import json

import pytest
import torch

from vssm.ops import tuning

CUDA = torch.device("cuda")
TIMES = {(16, 32): 3.0, (32, 32): 1.0, (16, 64): 2.0}


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """A GPU that is not here; the list fills with the tiles that were measured."""
    measured = []

    def milliseconds(function, device):
        function()
        return TIMES[measured[-1]]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VSSM_TUNE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    monkeypatch.setattr(tuning, "_chosen", {})
    return measured


def choose(measured, key="case"):
    return tuning.choose(key, CUDA, list(TIMES), measured.append)


def test_the_quickest_is_kept_in_the_process_and_on_disk(measured, monkeypatch):
    assert choose(measured) == choose(measured) == (32, 32)
    assert measured == list(TIMES)
    assert json.loads(tuning.cache_file().read_text()) == {"A GPU | case": [32, 32]}
    monkeypatch.setattr(tuning, "_chosen", {})  # another process
    assert choose(measured) == (32, 32) and len(measured) == 3
    choose(measured, "another case")
    assert len(measured) == 6 and set(json.loads(tuning.cache_file().read_text())) == {
        "A GPU | case",
        "A GPU | another case",
    }
    assert [path.name for path in tuning.cache_file().parent.iterdir()] == ["tiles.json"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"A GPU | case": 7}', '{"A GPU | case": ["a", 1]}'])
def test_a_damaged_file_is_one_warning_and_is_replaced(measured, text):
    tuning.cache_file().parent.mkdir()
    tuning.cache_file().write_text(text)
    with pytest.warns(UserWarning, match="cannot be read.*tiles are measured anew") as said:
        assert choose(measured) == (32, 32)
    assert len(said) == 1 and json.loads(tuning.cache_file().read_text()) == {"A GPU | case": [32, 32]}


def test_a_kept_tile_that_is_no_candidate_is_measured_again(measured):
    tuning.cache_file().parent.mkdir()
    tuning.cache_file().write_text('{"A GPU | case": [64, 64]}')
    assert choose(measured) == (32, 32) and len(measured) == 3


def test_off_by_the_flag_for_determinism_in_a_capture_and_on_the_cpu(measured, monkeypatch):
    assert tuning.choose("case", torch.device("cpu"), list(TIMES), measured.append) == (16, 32)
    torch.use_deterministic_algorithms(True)
    try:
        assert choose(measured) == (16, 32)
    finally:
        torch.use_deterministic_algorithms(False)
    with monkeypatch.context() as m:
        m.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert choose(measured) == (16, 32)
    with monkeypatch.context() as m:
        m.setenv("VSSM_TUNE", "0")
        assert choose(measured) == (16, 32)
    assert measured == [] and not tuning.cache_file().exists()


def test_a_capture_takes_the_tile_of_the_calls_before(measured, monkeypatch):
    """Its kernels are loaded, those of another tile may not be; a capture cannot load any."""
    tuning.cache_file().parent.mkdir()
    tuning.cache_file().write_text('{"A GPU | case": [16, 64]}')
    assert choose(measured) == (16, 64)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose(measured) == (16, 64) and measured == []


def test_a_tile_that_the_card_cannot_take_is_not_chosen():
    def too_large():
        raise ValueError("needs more shared memory")

    assert tuning.milliseconds(too_large, CUDA) == float("inf")


def test_sizes_share_choices_within_a_power_of_two():
    assert [tuning.size_class(n) for n in (0, 1, 2, 3, 4, 5, 1024, 1025)] == [0, 0, 1, 2, 2, 3, 10, 11]
