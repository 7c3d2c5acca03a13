"""Analysis of models: what they cost (multiply-adds, throughput, the tables of the papers), and what happens inside
(receptive fields, matrices of scans, activation maps, states, relevance of pixels).
"""

from vssm.analysis.activation import ActivationMaps, activation_map, diagonal_map
from vssm.analysis.cam import CamTarget, cam_target
from vssm.analysis.complexity import Complexity, complexity
from vssm.analysis.matrices import linear_attention, mixing_matrix, scan_matrix
from vssm.analysis.parts import NoSuchPart
from vssm.analysis.receptive_field import ReceptiveField, effective_receptive_field
from vssm.analysis.relevance import Relevance, relevance
from vssm.analysis.scans import blocks, scan_of
from vssm.analysis.states import MemoryDecay, StateMaps, memory_decay, state_maps, time_invariant_kernel

__all__ = [
    "ActivationMaps",
    "CamTarget",
    "Complexity",
    "MemoryDecay",
    "NoSuchPart",
    "ReceptiveField",
    "Relevance",
    "StateMaps",
    "activation_map",
    "blocks",
    "cam_target",
    "complexity",
    "diagonal_map",
    "effective_receptive_field",
    "linear_attention",
    "memory_decay",
    "mixing_matrix",
    "relevance",
    "scan_matrix",
    "scan_of",
    "state_maps",
    "time_invariant_kernel",
]
