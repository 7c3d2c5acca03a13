"""The memory that a training step needs: an estimate before anything runs on the device."""

import copy

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["activation_bytes", "state_bytes"]

_IMAGES = 2  # a BatchNorm in training refuses one value per channel


def activation_bytes(model: nn.Module, size: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> int:
    """Bytes that the backward of one image of `size` (C, H, W) finds saved, measured in a forward on the CPU.

    Under autocast to `dtype` where it is not float32. Storages that are saved more than once count once, parameters do
    not count. An estimate from below: temporary tensors of the backward come on top (a step of the tiny models on a
    CPU, with four images of 224, took 1.1 to 1.4 times as much as this and `state_bytes` together), accelerators save
    what their own kernels need, and their allocators round up.
    The model, and torch's random numbers, stay as they are. Raises what the model raises for such images.
    """
    probe = copy.deepcopy(model).cpu().train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*probe.parameters(), *probe.buffers())}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype.itemsize == 2)
    with torch.random.fork_rng(devices=[]), autocast, saved_tensors_hooks(pack, lambda tensor: tensor):
        output = probe(torch.zeros(_IMAGES, *size))  # kept until the end: what is saved must not be freed
    del output
    return sum(found.values()) // _IMAGES


def state_bytes(model: nn.Module, averaged: bool = True) -> int:
    """Bytes that stay over a training: weights and buffers, gradients and AdamW's two moments of what trains, and a
    second copy of the weights where they are averaged."""
    tensors = [*model.parameters(), *model.buffers()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    trained = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters() if tensor.requires_grad)
    return weights * (2 if averaged else 1) + 3 * trained
