"""Networks around a backbone, from the settings that name them: what the tasks share."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from vssm._words import nearest
from vssm.settings import ModelSettings

Factory = Callable[..., nn.Module]
TRIED = (64, 96)  # sides of the image that a network is tried with


def chosen_network(networks: Mapping[str, Factory], settings: ModelSettings) -> tuple[str, Factory]:
    """`settings.network`, or the first of `networks`, and its factory. Raises ValueError for an unknown one."""
    name = settings.network or next(iter(networks))
    if name not in networks:
        raise ValueError(f"model.network is {name!r}; expected {' or '.join(networks)}{nearest(name, networks)}")
    return name, networks[name]


def check_arguments(network: str, settings: ModelSettings, known: Iterable[str]) -> None:
    """Raises ValueError for the first of `settings.network_args` that is not known, with the nearest that is."""
    known = list(known)
    for argument in settings.network_args:
        if argument not in known:
            raise ValueError(
                f"model.network_args.{argument} is no argument of {network}{nearest(argument, known)} "
                f"(it takes {', '.join(known)})"
            )


def backbone_arguments(settings: ModelSettings) -> dict[str, Any]:
    """`settings.args`, with the rate of stochastic depth where one is given."""
    return (
        dict(settings.args) if settings.drop_path is None else {**settings.args, "drop_path_rate": settings.drop_path}
    )
