"""Looking at models: functions that return numbers and tensors."""

from vssm.analysis.complexity import Complexity, complexity

__all__ = ["Complexity", "complexity"]
