"""A network around a backbone, from the settings that name it."""

import inspect
from collections.abc import Callable, Mapping

from torch import nn

from vssm._words import nearest
from vssm.settings import ModelSettings

# What the task, the data and other settings decide.
_DECIDED = frozenset(("backbone", "num_classes", "pretrained", "backbone_args", "rpn", "stage"))


def create_network(
    networks: Mapping[str, Callable[..., nn.Module]],
    settings: ModelSettings,
    classes: int,
    channels: int,
    pretrained: bool = False,
) -> nn.Module:
    """`settings.network`, the first of `networks` when not given, around the backbone `settings.name`.

    Raises ValueError for an unknown network, an argument that it does not take, and what the network refuses.
    """
    name = settings.network or next(iter(networks))
    if name not in networks:
        raise ValueError(f"model.network is {name!r}; expected {' or '.join(networks)}{nearest(name, networks)}")
    factory = networks[name]
    known = set(inspect.signature(factory).parameters) - _DECIDED
    for argument in settings.network_args:
        if argument not in known:
            listed = ", ".join(sorted(known))
            near = nearest(argument, known)
            raise ValueError(f"model.network_args.{argument} is no argument of {name}{near}; it takes {listed}")
    backbone_args = {**settings.args, "in_chans": channels}
    if settings.drop_path is not None:
        backbone_args["drop_path_rate"] = settings.drop_path
    return factory(settings.name, classes, pretrained=pretrained, backbone_args=backbone_args, **settings.network_args)
