"""An ONNX file in 8 bits: weights of matrix products per channel, their inputs as they come (dynamic quantisation)."""

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["quantize", "quantized_macs"]

_INTEGER = ("MatMulInteger",)


def quantize(stored: Path, new: Path) -> None:
    """Every MatMul and Gemm of `stored` whose second factor is a weight, in int8 in `new`; the metadata is kept.

    onnxruntime's `quantize_dynamic`. Convolutions and the projections of the step sizes stay in float32: they have few
    multiply-adds in these networks.
    Raises ValueError when there is no such product.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = onnx.load(stored)
    # One weight for each route: MatMulInteger has no scale per channel for these (onnxruntime 1.32).
    several = {tensor.name for tensor in before.graph.initializer if len(tensor.dims) > 2}
    quantize_dynamic(
        stored,
        new,
        op_types_to_quantize=["MatMul", "Gemm"],
        nodes_to_exclude=[node.name for node in before.graph.node if several & set(node.input)],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    after = onnx.load(new)
    if not any(node.op_type in _INTEGER for node in after.graph.node):
        raise ValueError("the network has no matrix product with weights: there is nothing to quantise")
    after.metadata_props.clear()
    after.metadata_props.extend(before.metadata_props)
    after.producer_name, after.producer_version = before.producer_name, before.producer_version
    onnx.save(after, new)
    onnx.checker.check_model(new, full_check=True)


def quantized_macs(path: Path, shape: tuple[int, int, int, int]) -> int:
    """Multiply-adds of the products in int8 for images of a shape, found by running the file once."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in _INTEGER]
    kept = [node for node in products if node.input[1] in weights]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in kept)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Any = session.run([node.output[0] for node in kept], {"image": np.zeros(shape, np.float32)})
    return sum(y.size * weights[node.input[1]][-2] for node, y in zip(kept, found, strict=True))
