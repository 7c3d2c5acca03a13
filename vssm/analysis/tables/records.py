"""A table as records, one per row: what is printed, counted and measured, as plain values under plain names."""

from collections.abc import Mapping
from typing import Any

from vssm.analysis.tables.count import Counted, prints_as
from vssm.analysis.tables.table import Row, Table
from vssm.analysis.throughput import Measured

Record = dict[str, Any]


def records(
    table: Table,
    counted: Mapping[str, Counted | None],
    measured: Mapping[str, Measured] | None = None,
    reference: Row | None = None,
) -> list[Record]:
    """One dict per row, all with the same keys; None where there is no figure.

    row, change, built_as, image_size; params, params_paper, params_deviation, macs, gmacs_paper, macs_deviation
    (deviations in per cent of what the paper prints), as_printed (whether all that is printed comes out to its last
    digit); the papers' scores as NAME_paper; and of `measured`, keyed by row: images_per_second, ratio and ratio_paper
    (to `reference`), peak_mb. notes: keys of the table's notes.
    """
    return [_record(table, row, counted[row.name], measured, reference) for row in table.rows]


def _record(
    table: Table, row: Row, found: Counted | None, measured: Mapping[str, Measured] | None, reference: Row | None
) -> Record:
    height, width = (row.size, row.size) if isinstance(row.size, int) else row.size
    record: Record = {
        "row": row.name,
        "change": row.change or None,
        "built_as": None if row.model is None else row.built_as(),
        "image_size": f"{height}x{width}",
    }
    params, gmacs = (None, None) if found is None else (found.params / 1e6, found.macs / 1e9)
    record |= {"params": found and found.params, "params_paper": row.params}
    record |= {"params_deviation": _off(params, row.params)}
    record |= {"macs": found and found.macs, "gmacs_paper": row.gmacs, "macs_deviation": _off(gmacs, row.gmacs)}
    record["as_printed"] = None if found is None else _same(params, row.params) and _same(gmacs, row.gmacs)
    record |= {f"{key}_paper": row.scores.get(key) for key in table.scores}
    if measured is not None:
        seen = measured.get(row.name)
        record |= {
            "images_per_second": seen and round(seen.images_per_second, 3),
            "ratio": seen and round(seen.ratio, 4),
            "ratio_paper": _paper_ratio(row, reference, seen),
            "peak_mb": seen and seen.peak_mb and round(seen.peak_mb, 1),
        }
    record["notes"] = list(row.notes)
    return record


def _off(found: float | None, printed: str | None) -> float | None:
    return None if found is None or printed is None else round(100 * (found / float(printed) - 1), 3)


def _same(found: float | None, printed: str | None) -> bool:
    return found is None or printed is None or prints_as(found, printed)


def _paper_ratio(row: Row, reference: Row | None, seen: Measured | None) -> float | None:
    if reference is None:
        return None
    kind = "train_throughput" if seen is not None and seen.training else "throughput"
    mine, other = getattr(row, kind), getattr(reference, kind)
    return None if mine is None or other is None else round(mine / other, 4)
