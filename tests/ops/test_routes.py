"""Routes: in which order a map is visited, written out by hand."""

import pytest
import torch

from vssm.ops import BIDIRECTIONAL, CROSS, RASTER, UNIDIRECTIONAL, Route
from vssm.ops.routes import decode, encode, to_map, to_sequence, visit_order

# Raster positions of a map of 2 x 3:  0 1 2 / 3 4 5
ORDERS = {
    Route("rows", 1): [0, 1, 2, 3, 4, 5],
    Route("rows", -1): [5, 4, 3, 2, 1, 0],
    Route("columns", 1): [0, 3, 1, 4, 2, 5],
    Route("columns", -1): [5, 2, 4, 1, 3, 0],
}


@pytest.mark.parametrize("route", ORDERS, ids=str)
def test_pixels_are_visited_in_the_order_of_the_route(route):
    table = visit_order(tuple(encode((route,))), 2, 3)
    assert table.dtype == torch.int32
    assert table.tolist() == [ORDERS[route]]
    assert to_sequence(torch.arange(6).view(2, 3), route).tolist() == ORDERS[route]


@pytest.mark.parametrize("route", ORDERS, ids=str)
def test_a_sequence_is_put_back_where_it_came_from(route):
    x = torch.arange(2 * 4 * 3).view(2, 4, 3)
    assert torch.equal(to_map(to_sequence(x, route), route, 4, 3), x)


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        (CROSS, [("rows", 1), ("columns", 1), ("rows", -1), ("columns", -1)]),
        (UNIDIRECTIONAL, [("rows", 1)] * 4),
        (BIDIRECTIONAL, [("rows", 1), ("rows", 1), ("rows", -1), ("rows", -1)]),
        (RASTER, [("rows", 1)]),
    ],
    ids=["cross", "unidirectional", "bidirectional", "raster"],
)
def test_the_patterns_of_the_paper(pattern, steps):
    assert list(map(tuple, pattern)) == steps


def test_codes_are_a_direction_and_a_step_per_route():
    assert encode(CROSS) == [0, 1, 1, 1, 0, -1, 1, -1]
    assert decode(encode(CROSS)) == CROSS
    assert encode([["columns", -1]]) == [1, -1]


@pytest.mark.parametrize("route", [Route("rows", 2), Route("diagonal", 1), "rows", ("rows",), ("rows", 1, 1), 3])
def test_what_is_no_route_is_named(route):
    with pytest.raises(ValueError, match=r"unknown route .*: expected Route\(direction, step\)"):
        encode((route,))


def test_no_route_at_all():
    with pytest.raises(ValueError, match="at least one route, got none"):
        encode(())
