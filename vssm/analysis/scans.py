"""What the scan of one block read: the place where every look inside a model starts.

A block is named by its number over the whole network (negative: from the end), or by stage and number, "2.1".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vssm.analysis.frozen import Linear, convolution_of, frozen
from vssm.analysis.parts import NoSuchPart
from vssm.nn.adaptor import AdaptorS
from vssm.nn.bimamba import BidirectionalMamba
from vssm.nn.ss2d import SS2D
from vssm.nn.ssm import SSM
from vssm.ops import ss2d_states
from vssm.ops.routes import DIRECTIONS, Route, to_sequence
from vssm.ops.selective_scan.reference import held
from vssm.ops.ss2d.reference import split_projection

__all__ = ["BlockScan", "RouteScan", "blocks", "scan_of"]

BlockName = int | str | tuple[int, int]


@dataclass(frozen=True)
class RouteScan:
    """One route of a scan: S sequences of T pixels (S = 1, but for the cascade), float64 whatever the model's dtype.

        h_t = exp(dt_t A) h_{t-1} + b_t u_t,   y_t = <C_t, h_t> + D u_t,   b_t = dt_t B_t, or zero-order hold's

    Attributes:
        name: "rows forwards", "columns backwards", ...
        u, dt: (S, T, E); dt after bias and softplus.
        A: (E, N). B, C: (S, T, N). b: (S, T, E, N). D: (E,).
        reads: (S, T) the raster position of the pixel that step t reads.
        writes: (S, T) where its result goes: the same, but for the cascade, whose backward pass is added as it comes.
    """

    name: str
    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    b: Tensor
    D: Tensor
    reads: Tensor
    writes: Tensor


@dataclass(frozen=True)
class BlockScan:
    """The scan of one block on one image.

    Attributes:
        name: "2.1" for block 1 of stage 2 (counted from 0), "11" for block 11 of a network without stages.
        routes: what each route read.
        size: rows and columns of the map that is scanned; tokens with a class token are one row.
        grid: rows and columns of the patches of the image.
        class_token: position of the class token among the pixels, or None.
        y: (E, H, W) of `size`, the merged output, behind an adaptor_s.
        fused: the linear map of states to what is read out, (Q, K, E, N, H, W) -> the same; None: they are read out.
        merged: the linear map of the merged output through adaptor_s, (Q, E, H, W) -> the same, or None.
        direct: what a parallel adaptor_s adds, as a linear map of u, or None.
        before, after: (K, E, N, H, W) states as the scan computes them, and as they are read out.
        cascade: rows, then columns, with a norm between: the routes do not add up to one matrix.
    """

    name: str
    routes: tuple[RouteScan, ...]
    size: tuple[int, int]
    grid: tuple[int, int]
    class_token: int | None
    y: Tensor
    fused: Linear | None
    merged: Linear | None
    direct: Linear | None
    before: Tensor
    after: Tensor
    cascade: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything stands between the scan and its output: a fusion of states, or an adaptor."""
        return self.fused is not None or self.merged is not None or self.direct is not None

    def position(self, query: tuple[int, int]) -> int:
        """The raster position of the patch (row, column). NoSuchPart outside of the grid."""
        (rows, columns), (row, column) = self.grid, query
        if not (0 <= row < rows and 0 <= column < columns):
            raise NoSuchPart(
                f"query ({row}, {column}) is outside of the map of block {self.name}, which has {rows} x {columns} "
                f"patches: row 0 to {rows - 1}, column 0 to {columns - 1}"
            )
        at = row * columns + column
        return at + (self.class_token is not None and at >= self.class_token)

    def on_image(self, x: Tensor) -> Tensor:
        """(..., pixels) of the scanned map -> (..., rows, columns) of the image's patches, without the class token."""
        if self.class_token is not None:
            x = torch.cat([x[..., : self.class_token], x[..., self.class_token + 1 :]], -1)
        return x.unflatten(-1, self.grid)

    def find_route(self, route: int) -> int:
        """The route's number, if there is one. NoSuchPart with the valid choices."""
        if not isinstance(route, int) or not 0 <= route < len(self.routes):
            names = ", ".join(f"{i} ({found.name})" for i, found in enumerate(self.routes))
            raise NoSuchPart(f"block {self.name} has no route {route!r}; choose {names}")
        return route


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks with a scan, by name: their mixers. ValueError for a model without one."""
    found: dict[str, nn.Module] = {
        ".".join(part for part in name.replace("_", ".").split(".") if part.isdigit()): module
        for name, module in model.named_modules()
        if isinstance(module, SS2D | BidirectionalMamba)
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no selective scan to look at; take a VMamba, Spatial-Mamba, Mamba-Adaptor or "
            "Vim (`vssm models`). Receptive fields and class activation maps are there for every model"
        )
    return found


def find_block(model: nn.Module, block: BlockName | None) -> tuple[str, nn.Module]:
    """The name of a block and its mixer. None: the middle of what VMamba's figures show, block 1 of the third stage,
    or the middle block of a network without stages. NoSuchPart with the valid choices."""
    found = blocks(model)
    names = list(found)
    if block is None:
        block = "2.1" if "2.1" in found else names[len(names) // 2]
    if isinstance(block, tuple):
        block = ".".join(map(str, block))
    if isinstance(block, int) and -len(names) <= block < len(names):
        block = names[block]
    if block not in found:
        raise NoSuchPart(
            f"there is no block {block!r}; the network has {', '.join(names)}, or by number 0 to {len(names) - 1}"
        )
    return str(block), found[str(block)]


@torch.no_grad()
def scan_of(model: nn.Module, image: Tensor, block: BlockName | None = None) -> BlockScan:
    """Run the model on one image (C, H, W) or (1, C, H, W), as far as one block, and keep what its scan read.

    The model is left as it was; it should be in evaluation mode. Raises ValueError for a batch, and for a model without
    scans, NoSuchPart for a block that is not there.
    """
    image = image[None] if image.dim() == 3 else image
    if image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f"expected one image (C, H, W) or (1, C, H, W), got {tuple(image.shape)}")
    name, mixer = find_block(model, block)
    parts = [mixer.forward_branch, mixer.backward_branch] if isinstance(mixer, BidirectionalMamba) else [mixer]
    reads: dict[SSM, Tensor] = {}
    kept = {}

    def enough(_module, inputs, _output):
        kept["map"] = inputs[0]
        raise _Enough

    handle = mixer.register_forward_hook(enough)
    try:
        with _reading(parts, reads.__setitem__):  # type: ignore[arg-type]
            model(image)
    except _Enough:
        pass
    finally:
        handle.remove()
    if not kept:
        raise ValueError(f"the model did not call block {name} on this image")
    read = [(part, reads[part]) for part in parts]  # type: ignore[index]
    return _block_scan(model, name, mixer, read, image)  # type: ignore[arg-type]


class _Enough(Exception):
    """The block was reached: nothing behind it needs to run."""


@contextmanager
def _reading(parts: list[SSM], keep: Callable[[SSM, Tensor], None]) -> Iterator[None]:
    """While this lasts, `keep` is told what each of these modules scans."""

    def recorded(part: SSM):
        def scan(u: Tensor) -> Tensor:
            keep(part, u.detach())
            return type(part).scan(part, u)

        return scan

    for part in parts:
        part.scan = recorded(part)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in parts:
            del part.scan


def _block_scan(
    model: nn.Module, name: str, mixer: nn.Module, read: list[tuple[SSM, Tensor]], image: Tensor
) -> BlockScan:
    height, width = read[0][1].shape[2:]
    grid, class_token = (height, width), None
    if getattr(model, "cls_token", None) is not None:  # the tokens are one row, with the class token in the middle
        embed: Any = model.patch_embed
        class_token, grid = (height * width - 1) // 2, embed.grid(*image.shape[2:])
    if len(read) == 1 and read[0][0].cascade:
        return _cascade(name, read[0][0], read[0][1], grid)
    routes, fusions, before, after, outputs = [], [], [], [], []
    for part, u in read:
        double = u.double()
        routes += _routes(part, double)
        weights = [p.double() for p in (part.x_proj_weight, part.dt_proj_weight, part.dt_proj_bias)]
        weights.append(-part.A_log.double().exp())
        h, _ = ss2d_states(double, *weights, part.routes, part.discretization)  # type: ignore[arg-type]
        before.append(h[0])
        chain = []
        for module in (part.state_fn, part.adaptor_t):
            if module is not None:
                linear, h = frozen(module, h)
                chain.append(linear)
        after.append(h[0])
        fusions.append(_chained(chain))
        y = _read_out(h, routes[-len(part.routes) :], double)
        outputs.append(y)
    y = torch.stack(outputs).sum(0)
    owner = mixer if isinstance(mixer, BidirectionalMamba) else read[0][0]
    merged = direct = None
    if owner.adaptor_s is not None:
        assert isinstance(owner.adaptor_s, AdaptorS)
        convolve = convolution_of(owner.adaptor_s)
        if owner.adaptor_s.parallel:
            if len(read) > 1:
                raise ValueError(
                    "an AdaptorS with parallel=True reads what neither branch of Vim scans: no matrix has it"
                )
            direct, y = convolve, y + convolve(read[0][1].double())
        else:
            merged, y = _plus(convolve), y + convolve(y)
    fused = fusions[0]
    if len(fusions) > 1 and any(one is not None for one in fusions):
        fused = _side_by_side(fusions, [len(p.routes) for p, _ in read])
    states = torch.cat(before), torch.cat(after)
    size = (height, width)
    return BlockScan(name, tuple(routes), size, grid, class_token, y[0], fused, merged, direct, *states)


def _routes(part: SSM, u: Tensor) -> list[RouteScan]:
    """u (1, E, H, W) in float64 as each route of `part` reads it."""
    K, E, R = part.dt_proj_weight.shape
    dt, B, C = _projected(part, u)
    A, D = -part.A_log.double().exp().view(K, E, -1), part.D.double().view(K, E)
    positions = torch.arange(u.shape[2] * u.shape[3], device=u.device).view(u.shape[2:])
    found = []
    for k, route in enumerate(part.routes):
        read, steps, into, out = (to_sequence(x, route).T[None] for x in (u[0], dt[k], B[k], C[k]))
        at = to_sequence(positions, route)[None]
        found.append(_route_scan(_name(route), read, steps, into, out, A[k], D[k], at, at, part.zoh))
    return found


def _projected(part: SSM, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dt (K, E, H, W), B and C (K, N, H, W) of a map u (1, E, H, W)."""
    proj = F.linear(u.permute(0, 2, 3, 1), part.x_proj_weight.double().flatten(0, 1))
    low, B, C = split_projection(proj, part.dt_rank, part.d_state)
    dt = torch.einsum("bkrhw,kcr->bkchw", low, part.dt_proj_weight.double())
    return F.softplus(dt + part.dt_proj_bias.double()[:, :, None, None])[0], B[0], C[0]


def _route_scan(
    name: str,
    u: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    reads: Tensor,
    writes: Tensor,
    zoh: bool,
) -> RouteScan:
    weight = held(dt[..., None], A) if zoh else dt[..., None]
    return RouteScan(name, u, dt, A, B, C, weight * B[:, :, None], D, reads, writes)


def _cascade(name: str, part: SSM, u: Tensor, grid: tuple[int, int]) -> BlockScan:
    """Every row, then every column of the result, each in both directions with parameters of its own."""
    if part.adaptor_s is not None:
        raise ValueError("the cascade scan with an adaptor_s has no matrices; detach the adaptor, or use scan='cross'")
    (height, width), u = u.shape[2:], u.double()
    K, E, R = part.dt_proj_weight.shape
    A, D = -part.A_log.double().exp().view(K, E, -1), part.D.double().view(K, E)
    raster = torch.arange(height * width, device=u.device).view(height, width)
    found = []
    for first, lines in ((0, raster), (2, raster.T)):
        u = F.layer_norm(u.permute(0, 2, 3, 1), (E,)).permute(0, 3, 1, 2)
        dt, B, C = _projected(part, u)
        y = torch.zeros(E, height * width, dtype=u.dtype, device=u.device)
        for k, back in ((first, False), (first + 1, True)):
            reads = lines.flip(1) if back else lines
            read, steps, into, out = (x.flatten(1)[:, reads].permute(1, 2, 0) for x in (u[0], dt[k], B[k], C[k]))
            route = Route(DIRECTIONS[first // 2], -1 if back else 1)
            scan = _route_scan(_name(route), read, steps, into, out, A[k], D[k], reads, lines, part.zoh)
            found.append(scan)
            y[:, lines] += run(scan).permute(2, 0, 1)
        u = y.view(1, E, height, width)
    empty = u.new_zeros(0)
    return BlockScan(
        name, tuple(found), (height, width), grid, None, u[0], None, None, None, empty, empty, cascade=True
    )


def run(scan: RouteScan) -> Tensor:
    """y (S, T, E) of the equations above, one step after the other."""
    h = torch.zeros(scan.u.shape[0], *scan.A.shape, dtype=scan.u.dtype, device=scan.u.device)
    y = []
    for t in range(scan.u.shape[1]):
        h = torch.exp(scan.dt[:, t, :, None] * scan.A) * h + scan.b[:, t] * scan.u[:, t, :, None]
        y.append((h * scan.C[:, t, None]).sum(-1) + scan.D * scan.u[:, t])
    return torch.stack(y, 1)


def _read_out(h: Tensor, routes: list[RouteScan], u: Tensor) -> Tensor:
    """y (1, E, H, W) from states (1, K, E, N, H, W)."""
    y = torch.zeros_like(u).flatten(2)
    for k, route in enumerate(routes):
        at = route.reads[0]
        y[0, :, at] += torch.einsum("ent,tn->et", h[0, k].flatten(2)[..., at], route.C[0]) + (route.D * route.u[0]).T
    return y.view_as(u)


def _chained(maps: list[Linear]) -> Linear | None:
    if len(maps) < 2:
        return maps[0] if maps else None

    def chained(x: Tensor) -> Tensor:
        for linear in maps:
            x = linear(x)
        return x

    return chained


def _plus(linear: Linear) -> Linear:
    return lambda x: x + linear(x)


def _side_by_side(maps: list[Linear | None], counts: list[int]) -> Linear:
    """The maps of several modules, each for its own routes (dim 1)."""

    def applied(x: Tensor) -> Tensor:
        parts = zip(maps, x.split(counts, 1), strict=True)
        return torch.cat([part if linear is None else linear(part) for linear, part in parts], 1)

    return applied


def _name(route: Route) -> str:
    return f"{route.direction} {'forwards' if route.step > 0 else 'backwards'}"
