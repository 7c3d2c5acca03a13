"""What is seen inside a network: everything that the page shows, as plain values for JSON.

The scan of a block depends on the image and the network only. It is read once and kept, so that a click costs one row
of its matrix.
"""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from vssm.analysis.activation import activation_of
from vssm.analysis.matrices import mixing_rows
from vssm.analysis.receptive_field import effective_receptive_field
from vssm.analysis.scans import BlockScan, scan_of
from vssm.analysis.states import states_of
from vssm.lens.encoding import encoded, encoded_bytes, picture, quantised
from vssm.lens.images import Images
from vssm.lens.networks import Choice, Network, Networks
from vssm.lens.refused import Refused

__all__ = ["WHOLE", "Looks"]

WHOLE = 1024  # patches up to which the page gets the whole matrix: 1 MB of bytes
KEPT_SCANS = 6
KEPT_INPUTS = 8


@dataclass(frozen=True)
class _Input:
    """An image as a network takes it: 8-bit pixels (H, W, C), and (C, H, W)."""

    pixels: Tensor
    x: Tensor


class Looks:
    """Answers to the page. Every method raises Refused for what is not there, with the valid choices."""

    def __init__(self, images: Images, networks: Networks):
        self.images, self.networks = images, networks
        self._inputs: OrderedDict[tuple[str, Choice], _Input] = OrderedDict()
        self._scans: OrderedDict[tuple[str, Choice, str], BlockScan] = OrderedDict()
        self._lock = Lock()

    def add(self, content: bytes) -> dict[str, Any]:
        """An upload: its name and size. What was kept of the uploads that it displaces is dropped."""
        name, (width, height), dropped = self.images.add(content)
        with self._lock:
            for key in [key for key in self._inputs if key[0] in dropped]:
                del self._inputs[key]
            for key in [key for key in self._scans if key[0] in dropped]:
                del self._scans[key]
        return {"image": name, "width": width, "height": height}

    def opened(self, image: str, choice: Choice) -> dict[str, Any]:
        """The image as the network sees it, its five most probable classes, and the names of the blocks."""
        network = self.networks.get(choice)
        found = self._input(image, choice, network)
        with network.lock, torch.inference_mode():
            logits = network.predictor.model(found.x[None]).float().softmax(-1)[0]
        if not logits.isfinite().all():
            raise Refused("the model gives NaN or infinity for this image")
        values, classes = logits.topk(min(5, len(logits)))
        height, width = found.x.shape[1:]
        return {
            "model": network.predictor.name,
            "random": network.random,
            "view": picture(found.pixels),
            "size": [height, width],
            "classes": [
                {"name": network.predictor.classes[at], "probability": value}
                for value, at in zip(values.tolist(), classes.tolist(), strict=True)
            ],
            "blocks": list(network.blocks),
        }

    def block(self, image: str, choice: Choice, block: str, channel: int | None) -> dict[str, Any]:
        """What does not depend on the click: the map's size, the routes, the states of all channels or of one."""
        scan = self._scan(image, choice, block)
        E, N = scan.routes[0].A.shape
        rows, columns = scan.grid
        states = None
        if not scan.cascade:
            maps = states_of(scan)
            before, after = _asked(lambda: maps.mean() if channel is None else maps.channel(channel))
            states = {"before": encoded(before), "after": encoded(after), "fused": scan.fused is not None}
        return {
            "block": scan.name,
            "rows": rows,
            "columns": columns,
            "channels": E,
            "states_per_channel": N,
            "routes": [route.name for route in scan.routes],
            "cascade": scan.cascade,
            "class_token": scan.class_token is not None,
            "whole": rows * columns <= WHOLE,
            "states": states,
        }

    def click(
        self, image: str, choice: Choice, block: str, query: tuple[int, int], weights: str, channel: int | None
    ) -> dict[str, Any]:
        """The activation maps of one patch, per route and combined."""
        scan = self._scan(image, choice, block)
        maps = _asked(lambda: activation_of(scan, query, weights, channel))
        combined = None if maps.combined is None else encoded(maps.combined)
        return {"query": list(query), "routes": encoded(maps.routes), "combined": combined}

    def rows(
        self,
        image: str,
        choice: Choice,
        block: str,
        query: tuple[int, int] | None,
        weights: str,
        channel: int | None,
        route: int | None,
    ) -> bytes:
        """Rows of the mixing matrix on the image's patches, as `quantised` has them: of one patch, or of all."""
        scan = self._scan(image, choice, block)
        rows, columns = scan.grid
        if query is None and rows * columns > WHOLE:
            raise Refused(f"the matrix of {rows} x {columns} patches is too large to be sent; ask for one row of it")

        def found() -> Tensor:
            if query is not None:
                return next(mixing_rows(scan, [scan.position(query)], route, channel, weights, skip=False))
            patches = [scan.position((y, x)) for y in range(rows) for x in range(columns)]
            return torch.cat(list(mixing_rows(scan, None, route, channel, weights, skip=False)))[patches]

        return quantised(scan.on_image(_asked(found)).flatten(1))

    def field(self, image: str, choice: Choice, block: str, query: tuple[int, int]) -> dict[str, Any]:
        """The effective receptive field of one patch in the output of the block's stage."""
        network = self.networks.get(choice)
        if block not in network.blocks:
            raise Refused(f"there is no block {block!r}; the network has {', '.join(network.blocks)}")
        stage, x = int(block.split(".")[0]), self._input(image, choice, network).x
        with network.lock:
            field = _asked(lambda: effective_receptive_field(network.predictor.model, x[None], stage, query))
        half = field.square(0.5)
        return {"stage": stage, "map": encoded_bytes(field.normalised()), "side": half.side, "share": half.share}

    def _input(self, image: str, choice: Choice, network: Network) -> _Input:
        key = (image, choice)
        with self._lock:
            if key in self._inputs:
                self._inputs.move_to_end(key)
                return self._inputs[key]
        preprocess = network.predictor.preprocess
        transform = preprocess.transform()
        picture = self.images.read(image, preprocess.channels, transform.min_side)
        pixels = transform.pixels(picture)
        x = preprocess.batch([pixels], [(picture.height, picture.width)])[0]
        return _kept(self._lock, self._inputs, key, _Input(pixels, x), KEPT_INPUTS)

    def _scan(self, image: str, choice: Choice, block: str) -> BlockScan:
        network, key = self.networks.get(choice), (image, choice, block)
        found = self._input(image, choice, network)
        kept = self._find_scan(key)  # without the network, which may be busy with a receptive field
        if kept is not None:
            return kept
        with network.lock:  # a second request for the same scan waits for the first
            kept = self._find_scan(key)
            if kept is not None:
                return kept
            scan = _asked(lambda: scan_of(network.predictor.model, found.x, block))
            return _kept(self._lock, self._scans, key, scan, KEPT_SCANS)

    def _find_scan(self, key: tuple[str, Choice, str]) -> BlockScan | None:
        with self._lock:
            if key in self._scans:
                self._scans.move_to_end(key)
            return self._scans.get(key)


def _kept(lock: Lock, kept: OrderedDict, key: Any, value: Any, most: int) -> Any:
    with lock:
        kept[key] = value
        while len(kept) > most:
            kept.popitem(last=False)
    return value


def _asked(look):
    """What is outside of the model or the map, or has no meaning for it, is the page's to correct."""
    try:
        return look()
    except ValueError as error:  # NoSuchPart is one
        raise Refused(str(error)) from error
