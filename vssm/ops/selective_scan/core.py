"""Placeholder until the compiled kernels land: the same functions in plain torch."""

from vssm.ops.selective_scan import two_level as _t


def _wide(args):
    from vssm.ops.selective_scan.op import widen

    return widen(args)


def forward(*args):
    return _t.forward(*_wide(args))


def backward(*args):
    return _t.backward(*_wide(args))


def states_forward(*args):
    return _t.states_forward(*_wide(args))


def states_backward(*args):
    return _t.states_backward_op(*_wide(args))
