"""The model families. Importing this package registers their names with timm."""

from vssm.models import mamba_adaptor as _mamba_adaptor
from vssm.models import spatial_mamba as _spatial_mamba
from vssm.models import vim as _vim
from vssm.models import vmamba as _vmamba
from vssm.models.base import Backbone
from vssm.models.hierarchy import Hierarchy
from vssm.models.mamba_adaptor import MambaAdaptor, MambaAdaptorConfig
from vssm.models.spatial_mamba import SpatialMamba, SpatialMambaConfig
from vssm.models.vim import Vim, VimConfig
from vssm.models.vmamba import VMamba, VMambaConfig

__all__ = [
    "NAMES",
    "Backbone",
    "Hierarchy",
    "MambaAdaptor",
    "MambaAdaptorConfig",
    "SpatialMamba",
    "SpatialMambaConfig",
    "VMamba",
    "VMambaConfig",
    "Vim",
    "VimConfig",
    "list_models",
]

NAMES = (*_vmamba.VARIANTS, *_vmamba.SHORT_NAMES, *_spatial_mamba.VARIANTS, *_vim.VARIANTS, *_mamba_adaptor.VARIANTS)


def list_models() -> list[str]:
    """The names this package registers with timm."""
    return sorted(NAMES)
