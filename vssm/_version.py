"""The version, written here alone: pyproject.toml, `vssm.__version__` and `vssm --version` read it."""

__version__ = "0.1.0"
