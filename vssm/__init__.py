"""Visual state space models as timm models, on operators of their own.

Importing this package registers the models with timm. `create_model`, `load_checkpoint` and `complexity` are all a
first use needs; `vssm.ops`, `vssm.nn` and `vssm.models` are what they are made of.
"""

from vssm._launch import started_as_command

if not started_as_command():
    from vssm.analysis.complexity import complexity
    from vssm.models import list_models
    from vssm.models.adaptors import add_adaptors, freeze_base, load_adaptors, save_adaptors
    from vssm.models.build import create_model
    from vssm.weights import convert, load_checkpoint

__all__ = [
    "__version__",
    "add_adaptors",
    "complexity",
    "convert",
    "create_model",
    "freeze_base",
    "list_models",
    "load_adaptors",
    "load_checkpoint",
    "save_adaptors",
]

__version__ = "0.1.0"
