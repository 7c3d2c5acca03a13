"""Maps and matrices as the page takes them."""

import base64
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["encoded", "encoded_bytes", "picture", "quantised"]


def encoded(x: Tensor) -> dict[str, Any]:
    """Any shape, as float32 in the order of the bytes of x86: {"shape", "data" in base64}."""
    values = np.ascontiguousarray(x.detach().cpu().numpy(), dtype="<f4")
    return {"shape": list(values.shape), "data": base64.b64encode(values.tobytes()).decode()}


def encoded_bytes(x: Tensor) -> dict[str, Any]:
    """Values in 0..1 as 0..255: {"shape", "bytes" in base64}."""
    values = (x.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return {"shape": list(values.shape), "bytes": base64.b64encode(values.tobytes()).decode()}


def quantised(rows: Tensor) -> bytes:
    """(Q, L) as Q pairs (least, largest) of float32, little-endian, then Q x L bytes.

    A byte b of a row stands for least + b / 255 (largest - least): off by at most 1/510 of the row's range.
    """
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    levels = ((rows - low) / span * 255).round().to(torch.uint8)
    return torch.cat([low, high], 1).cpu().numpy().astype("<f4").tobytes() + levels.cpu().numpy().tobytes()


def picture(pixels: Tensor) -> str:
    """(H, W, C) of 8 bits, C = 1 or 3, as the address of a PNG that holds it."""
    values = pixels.numpy()
    content = BytesIO()
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
