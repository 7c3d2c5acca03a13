"""Using what was trained: reading runs and checkpoints, predicting, comparing, evaluating. Nothing here trains.

Importing this package is light; `vssm.inference.run_dir` needs the standard library only.
"""

# Modules, imported when asked for.
# pyright: reportUnsupportedDunderAll=false
__all__ = [
    "adapted",
    "checkpoint",
    "compare",
    "device",
    "evaluate",
    "input_size",
    "linear_tuning",
    "predict",
    "predictor",
    "results",
    "run_dir",
    "subject",
]
