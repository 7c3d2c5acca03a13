"""Rows measured on this machine."""

import dataclasses
import json

import pytest

from vssm.analysis.tables import Row
from vssm.analysis.tables.measure import MeasureError, _own_peak_memory, measure, peak_memory
from vssm.analysis.throughput import LEAST_TURNS, Conditions

NANO = Row("nano", "vmamba_nano", size=32, throughput=200)
WIDE = Row("wide", "vmamba_nano", {"ssm_ratio": 8.0}, size=32, throughput=100, train_throughput=10)
NONE = Row("none", None, throughput=50)


def test_measuring(monkeypatch):
    monkeypatch.setattr("vssm.analysis.tables.measure.peak_memory", lambda row, conditions: float(row.throughput))
    conditions = Conditions(batch=2, threads=1, seconds=0.05)
    dense = Row("dense", "vmamba_nano", upernet=8, size=(32, 48), throughput=1)
    assert [name for name, _ in measure([dense], NANO, dataclasses.replace(conditions, training=True))] == ["dense"]
    found = dict(measure([NANO, WIDE, NONE], NANO, conditions))
    assert list(found) == ["nano", "wide"]  # what no package has is left out
    assert found["nano"].ratio == 1 and found["nano"].turns >= LEAST_TURNS
    assert 0.05 < found["wide"].ratio < 1.0 < found["wide"].images_per_second
    assert [each.peak_mb for each in found.values()] == [200, 100]
    with pytest.raises(ValueError, match="row none cannot be measured, as no package has it"):
        next(measure([NANO], NONE, conditions))


def test_memory():
    conditions = Conditions(batch=2)
    peak = _own_peak_memory(
        json.dumps({"row": [NANO.model, NANO.options, None, None, NANO.size], "conditions": vars(conditions)})
    )
    assert peak is None or 0 <= peak < 500
    row = dataclasses.replace(NANO, options={"scan": "zigzag"})
    with pytest.raises(MeasureError, match=r"row nano could not be measured .*unknown scan 'zigzag'"):
        peak_memory(row, Conditions())
