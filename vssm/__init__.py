"""Visual state space models as timm models, on operators of their own.

Importing this package registers the models with timm. `create_model`, `load_checkpoint` and `complexity` are all a
first use needs; `vssm.ops`, `vssm.nn` and `vssm.models` are what they are made of.
"""

from typing import TYPE_CHECKING, Any

from vssm import settings  # noqa: F401 (bound here, as the command line loads it before the package)
from vssm._version import __version__
from vssm.analysis.complexity import complexity
from vssm.models import list_models
from vssm.models.build import create_model
from vssm.nn.attach import add_adaptors, freeze_base
from vssm.weights import convert, load_checkpoint
from vssm.weights.adaptors import load_adaptors, save_adaptors

if TYPE_CHECKING:
    from vssm.inference.predictor import load

__all__ = [
    "__version__",
    "add_adaptors",
    "complexity",
    "convert",
    "create_model",
    "freeze_base",
    "list_models",
    "load",
    "load_adaptors",
    "load_checkpoint",
    "save_adaptors",
]


def __getattr__(name: str) -> Any:
    """`vssm.load`, with the data and tasks that it needs, on first use: `import vssm` does not wait for them."""
    if name == "load":
        from vssm.inference.predictor import load

        return load
    raise AttributeError(f"module 'vssm' has no attribute {name!r}")
