"""Records: what is printed, counted and measured of a row."""

from vssm.analysis.tables import load_table
from vssm.analysis.tables.count import count
from vssm.analysis.tables.records import records
from vssm.analysis.throughput import Measured


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
