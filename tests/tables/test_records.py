"""Records, what is measured, and the figures of tables."""

import dataclasses
import json

import pytest
from PIL import Image

from vssm.tables import NAMES, Row, load_table
from vssm.tables.count import Counted, count
from vssm.tables.figures import draw
from vssm.tables.measure import LEAST_TURNS, Measured, MeasureError, Settings, _own_peak_memory, measure, peak_memory
from vssm.tables.records import records

NANO = Row("nano", "vmamba_nano", size=32, throughput=200)
WIDE = Row("wide", "vmamba_nano", {"ssm_ratio": 8.0}, size=32, throughput=100, train_throughput=10)
NONE = Row("none", None, throughput=50)
FIGURES = [name for name in NAMES if load_table(name).figure is not None]


def _counted(table):
    return {row.name: None if row.model is None else Counted(31_000_000, 5_000_000_000) for row in table.rows}


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


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("measured", [False, True])
def test_figures(name, measured, tmp_path):
    table = load_table(name)
    speeds = {row.name: Measured(10, 0.5, 3, 100, False) for row in table.rows if row.model} if measured else None
    reference = table.rows[0]
    found = records(table, _counted(table), speeds, reference if measured else None)
    draw(table, found, reference if measured else None, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert min(image.size) > 500
        assert len(image.convert("RGB").resize((100, 50)).getcolors(5000)) > 20  # drawn, not blank


def test_a_table_without_a_figure(tmp_path):
    table = load_table("d-state")
    with pytest.raises(ValueError, match="the papers draw no figure of table d-state"):
        draw(table, records(table, _counted(table)), None, tmp_path / "figure.png")
