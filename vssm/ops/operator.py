"""How an operator of this package is declared: once. Everything that torch has to know of it follows from there.

`Operator` registers two functional torch operators, `vssm::NAME` and `vssm::NAME_backward`, with their shapes, their
implementations, their derivatives and their FLOPs. Both take a trailing `str path`: the implementation that was
demanded ("" = choose at run time), so that a backward takes the path its forward took. `Library.define` and `impl` are
used rather than `custom_op` because a call costs about half as much.

Derivatives. An operator has a plain form, a composition of torch's operators that is differentiable to any order and
can be batched. First gradients come from the backward operator. Whatever the two operators do not know of goes through
the plain form: the derivative of a gradient, forward-mode tangents, and the transforms of torch.func.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from vssm.ops import dispatch, native
from vssm.ops.tensors import at_least_float32, empty, laid_out, widest_dtype

LIBRARY = torch.library.Library("vssm", "FRAGMENT")
OPERATORS: dict[str, "Operator"] = {}

# What the result's dtype is, among the inputs' dtypes.
RESULT: dict[str, Callable[..., torch.dtype]] = {
    "first": lambda x, *others: x.dtype,
    "widest": widest_dtype,
    "at least float32": at_least_float32,
}

_PLAIN = (Tensor, torch.nn.Parameter)
Order = tuple[int, ...] | None
Implementation = ModuleType | str | None


def autocasts(x: Tensor) -> bool:
    """Whether torch would compute in half precision on the device of x; the meta device cannot be asked."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def is_transformed(values: Sequence[Any]) -> bool:
    """Whether torch.func transforms what is called, or a tensor carries a forward-mode tangent."""
    if torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return True
    if forward_ad._current_level < 0:
        return False
    return any(isinstance(v, Tensor) and forward_ad.unpack_dual(v).tangent is not None for v in values)


def is_inference(values: Sequence[Any]) -> bool:
    """Whether torch runs step by step on plain values in memory, and neither gradients nor a transform nor a graph
    wants each of the steps. False for subclasses of Tensor, fake ones among them, and on the meta device: what counts
    operators runs on these."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or is_transformed(values)
        or any(isinstance(v, Tensor) and (type(v) not in _PLAIN or v.is_meta) for v in values)
    )


class Operator:
    """One operator. Calling it runs it: on the path that `vssm.ops.use` demands, or on the best one.

    Args:
        schema: of the forward, all tensors first: "name(Tensor x, Tensor? weight, float eps) -> Tensor".
        shape: the arguments -> the result's shape, a list of them for several results.
        reference: the equation. Arguments as in the schema; widened to one dtype if `widens`.
        portable: the same in operators that every runtime knows, for export; None: the reference. Where there is one,
            the path "unrolled" takes the plain form, if that is given.
        plain: a quicker composition of the same, differentiable to any order and batchable; None: the reference.
        torch_path: what the torch path runs: a module with `forward` and `backward`; or a composition that can be
            differentiated once; or None, the plain form.
        core, triton: modules with `forward` and `backward`, or their names, imported at the first call. None: no such
            path.
        prefix: what stands before `forward` and `backward` in the modules' names.
        result: "first", "widest" or "at least float32", the dtype of the results among those of the tensors.
        widens: whether inputs of different or low precision are computed in one, at least float32, and outside of
            autocast; else torch's own rules hold.
        order: dimensions of the first result in memory, outermost first; None as they are counted.
        gradient_orders: the same of the gradients, by the name of the input.
        macs: shapes of the arguments -> multiply-adds of the forward by kind, as the papers count them.
        backward_macs: what the backward takes, in forwards.
        saved_results: so many last results are no function to differentiate by, but kept for the backward, which has
            them after the tensors.
        added: the last tensor is an addition to the result: the backward neither needs nor has it.
        rule: a reason of this operator against its core for a device and dtype, or None.
        limit: a reason against the core or Triton for given arguments, or None.
        differentiable: whether there is a backward operator; else gradients are those of the plain form.
        inlines: when the plain form takes the operator's place in a compiled graph, where it fuses and is known
            everywhere: "compile" (and export), "export", or "never".
    """

    def __init__(
        self,
        schema: str,
        *,
        shape: Callable[..., Any],
        reference: Callable[..., Any],
        portable: Callable[..., Any] | None = None,
        plain: Callable[..., Any] | None = None,
        torch_path: ModuleType | Callable[..., Any] | None = None,
        core: Implementation = None,
        triton: Implementation = None,
        prefix: str = "",
        result: str = "widest",
        widens: bool = True,
        order: Order = None,
        gradient_orders: Mapping[str, tuple[int, ...]] | None = None,
        macs: Callable[..., dict[str, int]],
        backward_macs: float = 2,
        saved_results: int = 0,
        added: bool = False,
        rule: dispatch.Rule | None = None,
        limit: Callable[..., str | None] | None = None,
        differentiable: bool = True,
        inlines: str = "never",
    ):
        match = re.fullmatch(r"(\w+)\((.*)\) -> (.*)", schema)
        if match is None:
            raise ValueError(f"no schema: {schema!r}")
        self.name, self._arguments, returns = match.groups()
        kinds, names = zip(*(argument.split(" ") for argument in self._arguments.split(", ")), strict=True)
        self._tensors = sum(kind.startswith("Tensor") for kind in kinds)
        self._results = returns.count("Tensor")
        self.reference, self.plain = reference, plain or reference
        self.forms = {
            "reference": reference,
            "portable": portable or reference,
            "unrolled": plain or portable if portable is not None else reference,
        }
        self._modules: dict[str, Implementation] = {"core": core, "triton": triton}
        self.composition: Callable[..., Any] = self.plain  # of the torch path, and of compiled graphs
        if isinstance(torch_path, ModuleType):
            self._modules["torch"] = torch_path
        elif torch_path is not None:
            self.composition = torch_path
        self._forward_name, self._backward_name = f"{prefix}forward", f"{prefix}backward"
        self._result_dtype, self._widens = RESULT[result], widens
        self._shape, self._order = shape, order
        self._gradient_orders = [(gradient_orders or {}).get(name) for name in names[: self._tensors]]
        self._saved_results, self._added, self._limit, self._inlines = saved_results, added, limit, inlines
        self._absent = (None,) * added  # in the place of the tensor that the backward does not have
        self.macs, self._backward_macs = macs, backward_macs
        self._differentiable = differentiable
        paths: dict[str, dispatch.Rule | None] = {"core": rule} if core is not None else {}
        paths |= {"triton": None} if triton is not None else {}
        paths |= {"torch": None, "reference": None}
        self.paths = tuple(paths)
        dispatch.register(self.name, **paths)
        OPERATORS[self.name] = self
        self._register(returns)

    # ---- running it ----

    def __call__(self, *args: Any) -> Any:
        """Run the operator; arguments as in the schema, checked by the public function."""
        path = dispatch.requested()
        if path in self.forms:
            return self.evaluate(self.forms[path], args)
        if torch.compiler.is_compiling() and not path and self._is_inlined():
            return self.evaluate(self.composition, args)
        if self.is_composed(args, path):
            return self.evaluate(self.plain, args)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.op(*args, path)
        with torch._C._AutoDispatchBelowAutograd():  # one trip through torch's dispatcher less
            return self.op(*args, path)

    def is_composed(self, args: Sequence[Any], path: str) -> bool:
        """Whether the plain form runs in the operator's place."""
        if torch.compiler.is_compiling():
            if not path and self._is_inlined():
                return True
        elif is_transformed(args):
            return True
        if self._widens:
            return False
        # Torch's own rules hold: the operator only stands in for them, where its core runs. A traced graph is the same
        # with and without gradients.
        return (
            (torch.is_grad_enabled() and not self._differentiable)
            or torch.jit.is_tracing()
            or autocasts(args[0])
            or dispatch.choose(self.name, args[0], path) != "core"
            or (self._limit is not None and self._limit(*args) is not None)
        )

    def _is_inlined(self) -> bool:
        """Whether a graph that is being compiled gets the plain form. For inference on the CPU core our operators are
        faster than what is fused."""
        if self._inlines == "never":
            return False
        if torch.compiler.is_exporting():
            return True
        return self._inlines == "compile" and (torch.is_grad_enabled() or not native.available())

    def evaluate(self, function: Callable[..., Any], args: Sequence[Any]) -> Any:
        """The result of a composition of torch's operators, in the dtype of the operator's result."""
        if not self._widens:
            return function(*args)
        tensors = args[: self._tensors]
        dtype, wide = self._result_dtype(*tensors), at_least_float32(*tensors)
        y = _in_dtype(wide, function, tensors, args[self._tensors :])
        if dtype is wide:
            return y
        return y.to(dtype) if isinstance(y, Tensor) else tuple(part.to(dtype) for part in y)

    def _choose(self, args: Sequence[Any], path: str) -> str:
        chosen = dispatch.choose(self.name, args[0], path, *args[1 : self._tensors])
        if self._limit is None or chosen == "torch":
            return chosen
        reason = self._limit(*args)
        if reason is None:
            return chosen
        if path == "core":
            raise dispatch.PathUnavailable(
                f"path 'core' was demanded for {self.name} and cannot run: {reason}; "
                "leave the choice free, or demand 'torch'"
            )
        return "torch"

    def _function(self, path: str, name: str) -> Callable[..., Any] | None:
        """What a path runs; None where that is a composition."""
        module = self._modules.get(path)
        if isinstance(module, str):
            module = self._modules[path] = importlib.import_module(module)
        return None if module is None else getattr(module, name)

    def _forward(self, *inputs: Any) -> Any:
        """`vssm::NAME` on every device."""
        *args, path = inputs
        chosen = self._choose(args, path)
        function = self._function(chosen, self._forward_name)
        if function is not None and chosen != "torch":
            return function(*args)
        y = self.evaluate(self.composition if function is None else function, args)
        if isinstance(y, Tensor):
            return laid_out(y, self._order)
        return tuple(part.contiguous() for part in y)

    def _fake(self, *inputs: Any) -> Any:
        """Shapes, dtypes and memory of `vssm::NAME`."""
        args = inputs[:-1]
        dtype, shape = self._result_dtype(*args[: self._tensors]), self._shape(*args)
        if self._results == 1:
            return empty(args[0], shape, self._order, dtype)
        return tuple(empty(args[0], each, None, dtype) for each in shape)

    # ---- derivatives ----

    def _split(self, inputs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Inputs of the backward but its path: gradients of the results, tensors, saved results, options."""
        first = self._results - self._saved_results
        second = first + self._tensors - self._added
        third = second + self._saved_results
        return inputs[:first], inputs[first:second], inputs[second:third], inputs[third:-1]

    def _backward(self, *inputs: Any) -> list[Tensor]:
        """`vssm::NAME_backward` on every device: a gradient per tensor, an empty one where that is absent."""
        grads, tensors, saved, options = self._split(inputs)
        args = (*tensors, *self._absent, *options)
        chosen = self._choose(args, inputs[-1])
        function = self._function(chosen, self._backward_name)
        if function is None:
            with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
                return self._gradients(self.composition, grads, tensors, options, further=False)
        if grads[0] is None:
            dtype, shape = self._result_dtype(*tensors), self._shape(*args)
            grads = (tensors[0].new_zeros(shape if self._results == 1 else shape[0], dtype=dtype), *grads[1:])
        if chosen != "torch":
            return self._returned(function(*grads, *tensors, *saved, *options), tensors)
        results = _in_dtype(at_least_float32(*tensors), function, (*grads, *tensors, *saved), options)
        return self._returned(results, tensors)

    def _gradients(
        self,
        function: Callable[..., Any],
        grads: Sequence[Any],
        tensors: Sequence[Any],
        options: Sequence[Any],
        further: bool,
    ) -> list[Tensor]:
        """The gradients of a composition; `further`, to be differentiated in their turn."""
        present = [i for i, t in enumerate(tensors) if t is not None]
        wanted = [i for i, g in enumerate(grads) if g is not None]

        def composed(*given: Tensor) -> tuple[Tensor, ...]:
            filled = list(tensors)
            for i, t in zip(present, given, strict=True):
                filled[i] = t
            y = self.evaluate(function, (*filled, *self._absent, *options))
            return tuple((y,)[i] if isinstance(y, Tensor) else y[i] for i in wanted)

        given = tuple(tensors[i] for i in present)
        if is_transformed((*grads, *given)):
            y, vjp = torch.func.vjp(composed, *given)  # pyright: ignore[reportAssignmentType]
            results = vjp(tuple(grads[i].to(part.dtype) for i, part in zip(wanted, y, strict=True)))
        else:
            with torch.enable_grad():
                # A tensor given twice has a gradient for each time, so every input is a view of its own.
                leaves = [t.view_as(t) if further and t.requires_grad else t.detach().requires_grad_() for t in given]
                y = composed(*leaves)
            gs = [grads[i].to(part.dtype) for i, part in zip(wanted, y, strict=True)]
            results = torch.autograd.grad(y, leaves, gs, create_graph=further, materialize_grads=True)
        found: list[Tensor | None] = [None] * len(tensors)
        for i, g in zip(present, results, strict=True):
            found[i] = g
        return self._returned(found, tensors)

    def _returned(self, grads: Sequence[Tensor | None], tensors: Sequence[Any]) -> list[Tensor]:
        """Gradients in the shape and dtype of their inputs; an absent one becomes the empty tensor that a schema can
        return."""
        results = []
        for i, (g, t) in enumerate(zip(grads, tensors, strict=True)):
            if t is None or g is None:
                results.append(tensors[0].new_empty(0))
                continue
            g = (g if g.shape == t.shape else g.reshape(t.shape)).to(t.dtype)
            results.append(laid_out(g, self._gradient_orders[i]))
        return results

    def _fake_backward(self, *inputs: Any) -> list[Tensor]:
        tensors = self._split(inputs)[1]
        return [
            tensors[0].new_empty(0) if t is None else empty(t, t.shape, order, t.dtype)
            for t, order in zip(tensors, self._gradient_orders)
        ]

    def _node(self) -> type[torch.autograd.Function]:
        """The operator in autograd's graph: what torch.library.register_autograd makes of any schema, at half its cost
        per call."""
        op, backward_op = self.op, getattr(torch.ops.vssm, f"{self.name}_backward").default
        tensors, kept = self._tensors, self._tensors - self._added
        saved_results, results = self._saved_results, self._results - self._saved_results

        def forward(ctx: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                y = op(*inputs)
            saved = inputs[:kept]
            if saved_results:
                saved += y[-saved_results:]
                ctx.mark_non_differentiable(*y[-saved_results:])
            ctx.save_for_backward(*saved)
            ctx.set_materialize_grads(False)
            ctx.options, ctx.has_added = inputs[tensors:], all(t is not None for t in inputs[kept:tensors])
            return y

        def backward(ctx: Any, *grads: Any) -> Any:
            grads, rest = grads[:results], [None] * len(ctx.options)
            if all(g is None for g in grads):
                return (None,) * (tensors + len(rest))
            saved = ctx.saved_tensors
            found = backward_op(*grads, *saved, *ctx.options)
            found = [None if t is None else g for t, g in zip(saved, found)]
            added = [grads[0] if ctx.has_added else None] * (tensors - kept)
            return (*found, *added, *rest)

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return type(self.name, (torch.autograd.Function,), methods)

    def _register(self, returns: str) -> None:
        arguments = self._arguments.split(", ")
        tensors, options = arguments[: self._tensors - self._added], arguments[self._tensors :]
        grads = [f"Tensor? g{i}" for i in range(self._results - self._saved_results)]
        saved = [f"Tensor saved{i}" for i in range(self._saved_results)]
        backward = ", ".join([*grads, *tensors, *saved, *options])
        self._define(self.name, f"({self._arguments}, str path) -> {returns}", self._forward, self._fake)
        self.op = getattr(torch.ops.vssm, self.name).default

        def kernel(*inputs: Any) -> Any:
            wanted = torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)
            if is_transformed(inputs) or (wanted and not self._differentiable):
                return self.evaluate(self.plain, inputs[:-1])
            if wanted:
                return node.apply(*inputs)
            with torch._C._AutoDispatchBelowAutograd():
                return self.op(*inputs)

        LIBRARY.impl(self.name, kernel, "Autograd")
        LIBRARY.impl(self.name, lambda *inputs: self.evaluate(self.plain, inputs[:-1]), "FuncTorchBatched")
        register_flop_formula(getattr(torch.ops.vssm, self.name))(
            lambda *args, out_shape=None, **_: self._flops(args[:-1])
        )
        if not self._differentiable:
            return
        name = f"{self.name}_backward"
        self._define(name, f"({backward}, str path) -> Tensor[]", self._backward, self._fake_backward)
        backward_op = getattr(torch.ops.vssm, name).default
        node = self._node()

        def plain_backward(*inputs: Any) -> Any:
            grads, tensors, _, options = self._split(inputs)
            return self._gradients(self.plain, grads, tensors, options, torch.is_grad_enabled())

        def backward_kernel(*inputs: Any) -> Any:
            if is_transformed(inputs) or (torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs)):
                return plain_backward(*inputs)
            with torch._C._AutoDispatchBelowAutograd():
                return backward_op(*inputs)

        def backward_flops(*inputs: Any, out_shape: Any = None, **_: Any) -> int:
            tensors, options = self._split(inputs)[1::2]
            return int(self._backward_macs * self._flops((*tensors, *self._absent, *options)))

        LIBRARY.impl(name, backward_kernel, "Autograd")
        LIBRARY.impl(name, plain_backward, "FuncTorchBatched")
        LIBRARY.impl(name, self._refuse_batched, "Batched")
        register_flop_formula(getattr(torch.ops.vssm, name))(backward_flops)

    def _refuse_batched(self, *_: Any) -> Any:
        raise NotImplementedError(
            f"operator {self.name} does not know the batched gradients of torch.autograd.grad(is_grads_batched=True) "
            "or torch.autograd.functional (vectorize=True); use torch.func.jacrev, torch.func.vjp and torch.func.vmap"
        )

    def _define(self, name: str, schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"vssm::{name}", fake, lib=LIBRARY)

    def _flops(self, shapes: Sequence[Any]) -> int:
        """Two per multiply-add."""
        return 2 * sum(self.macs(*shapes).values())


def _in_dtype(dtype: torch.dtype, function: Callable[..., Any], tensors: Sequence[Any], options: Sequence[Any]) -> Any:
    """Call a composition with its tensors in one dtype, and outside of autocast."""
    wide = [t if t is None or t.dtype is dtype else t.to(dtype) for t in tensors]
    device = next(t for t in wide if t is not None)
    if not autocasts(device):
        return function(*wide, *options)
    with torch.autocast(device.device.type, enabled=False):
        return function(*wide, *options)
