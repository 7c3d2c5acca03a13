"""report.html: what a run learnt, how good it is and where it fails, in one file that needs nothing else.

From a run directory to facts (`gather`), from facts to a page (`page`, `charts`, `style.css`).
"""
