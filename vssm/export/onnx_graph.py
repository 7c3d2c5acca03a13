"""What becomes of torch's ONNX graph: its constants folded, and an operator in the form that runtimes compute fast."""

from typing import Any

__all__ = ["simplify", "softplus"]

# Elements of the largest constant that is folded: weights are transposed and joined here, not at every load.
LARGEST = 1 << 26


def simplify(model: Any) -> None:
    """Fold constants, drop what nothing uses, merge what is twice there, in place.

    onnxscript's own optimiser would do this and then match its rewrite rules at every node, which took most of the time
    of an export and found nothing that the runtimes do not find.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    for node in model.graph.all_nodes():
        # Directions of no outputs are an empty list, which onnx's own helpers cannot write again (int8).
        for name in [name for name, value in node.attributes.items() if name.startswith("scan_") and not value.value]:
            del node.attributes[name]
    fold_constants(model, onnx_shape_inference=True, input_size_limit=LARGEST, output_size_limit=LARGEST)
    for one in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        one(model)


def softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """`torch.nn.functional.softplus` as max(x, log(1 + exp(min(x, 80)))), which onnxruntime computes several times as
    fast as its own Softplus. 80 keeps exp finite in float32, 10 in float16. The absolute error is that of rounding 1:
    results far below 1 have fewer digits than torch's."""
    from onnx_ir import DataType
    from onnxscript import opset20

    op: Any = opset20  # its annotations are those of a script, not of a translation

    scaled = x if beta == 1 else op.Mul(x, op.CastLike(beta, x))
    one, largest = op.CastLike(1.0, x), op.CastLike(10.0 if x.dtype == DataType.FLOAT16 else 80.0, x)
    y = op.Max(scaled, op.Log(op.Add(op.Exp(op.Min(scaled, largest)), one)))
    return y if beta == 1 else op.Div(y, op.CastLike(beta, x))
