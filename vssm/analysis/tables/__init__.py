"""The papers' tables: their rows as models of this package, with what the papers print beside what is counted here.

`data/NAME.json` holds one table: where it was printed, its rows, how each row is built, and the printed figures as the
papers print them, digit by digit. `vssm table` shows them.
"""

from vssm.analysis.tables.table import NAMES, Row, Table, load_table

__all__ = ["NAMES", "Row", "Table", "load_table"]
