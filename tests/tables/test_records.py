"""Records, and what is measured."""

import dataclasses
import json

import pytest

from vssm.tables import Row, load_table
from vssm.tables.count import count
from vssm.tables.measure import LEAST_TURNS, Measured, MeasureError, Settings, _own_peak_memory, measure, peak_memory
from vssm.tables.records import records

NANO = Row("nano", "vmamba_nano", size=32, throughput=200)
WIDE = Row("wide", "vmamba_nano", {"ssm_ratio": 8.0}, size=32, throughput=100, train_throughput=10)
NONE = Row("none", None, throughput=50)


def test_a_record():
    table = load_table("scan-patterns").select(["cascade", "cross"])
    counted = {row.name: count(row) for row in table.rows}
    measured = {"cascade": Measured(12.3456, 0.59, 5, None, False)}
    cascade, cross = records(table, counted, measured, table.row("cross"))
    assert cascade == {
        "row": "cascade",
        "change": None,
        "built_as": "vmamba_tiny scan=cascade",
        "image_size": "224x224",
        "params": 30249064,
        "params_paper": "30.2",
        "params_deviation": 0.162,
        "macs": 4918254336,
        "gmacs_paper": "4.91",
        "macs_deviation": 0.168,
        "as_printed": False,
        "top1_paper": "82.42",
        "images_per_second": 12.346,
        "ratio": 0.59,
        "ratio_paper": round(998 / 1686, 4),
        "peak_mb": None,
        "notes": ["cascade"],
    }
    assert cross["as_printed"] and cross["images_per_second"] is None
    trained = records(table, counted, {"cascade": Measured(1, 1, 5, None, True)}, table.row("cross"))
    assert trained[0]["ratio_paper"] == round(308 / 571, 4)


def test_measuring(monkeypatch):
    monkeypatch.setattr("vssm.tables.measure.peak_memory", lambda row, settings: float(row.throughput))
    settings = Settings(batch=2, threads=1, seconds=0.05)
    dense = Row("dense", "vmamba_nano", upernet=8, size=(32, 48), throughput=1)
    assert [name for name, _ in measure([dense], NANO, dataclasses.replace(settings, training=True))] == ["dense"]
    found = dict(measure([NANO, WIDE, NONE], NANO, settings))
    assert list(found) == ["nano", "wide"]  # what no package has is left out
    assert found["nano"].ratio == 1 and found["nano"].turns >= LEAST_TURNS
    assert 0.05 < found["wide"].ratio < 1.0 < found["wide"].images_per_second
    assert [each.peak_mb for each in found.values()] == [200, 100]
    with pytest.raises(ValueError, match="row none cannot be measured, as no package has it"):
        next(measure([NANO], NONE, settings))


def test_memory():
    settings = Settings(batch=2)
    peak = _own_peak_memory(
        json.dumps({"row": [NANO.model, NANO.options, None, NANO.size], "settings": vars(settings)})
    )
    assert peak is None or 0 <= peak < 500
    row = dataclasses.replace(NANO, options={"scan": "zigzag"})
    with pytest.raises(MeasureError, match=r"row nano could not be measured .*unknown scan 'zigzag'"):
        peak_memory(row, Settings())
