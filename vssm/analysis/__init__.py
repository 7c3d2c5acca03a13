"""Analysis of models: multiply-adds, throughput, the tables of the papers."""

from vssm.analysis.complexity import Complexity, complexity

__all__ = ["Complexity", "complexity"]
