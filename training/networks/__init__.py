"""Restoration networks by name, with the state-dict keys of their official code.

A checkpoint published by the authors loads as it is, and a network trained here loads there.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from samprior.storage.choices import check_choice
from samprior.storage.errors import UsageError
from samprior.training.networks import efficientderain, nafnet, rcdnet, restormer, uformer
from samprior.training.networks.efficientderain import EfficientDeRain
from samprior.training.networks.factory import build_from_factory, is_factory
from samprior.training.networks.nafnet import NAFNet
from samprior.training.networks.rcdnet import RCDNet
from samprior.training.networks.restormer import Restormer
from samprior.training.networks.uformer import Uformer

__all__ = [
    "NETWORKS",
    "PRESETS",
    "EfficientDeRain",
    "NAFNet",
    "RCDNet",
    "RestorationNetwork",
    "Restormer",
    "Uformer",
    "build_network",
    "is_factory",
]


@runtime_checkable
class RestorationNetwork(Protocol):
    """What training and restoring ask of a network: images (B, 3, H, W) in [0, 1] both ways.

    Any H and W are taken; inside, they are padded to a multiple of `padding_multiple`. Results
    aren't clamped.
    """

    padding_multiple: int

    def __call__(self, image: Tensor) -> Tensor:
        """Restore `image`; the result has its shape."""
        ...


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "nafnet": NAFNet,
    "restormer": Restormer,
    "uformer": Uformer,
    "rcdnet": RCDNet,
    "efficientderain": EfficientDeRain,
}
"""Makers of networks; each takes its settings as keyword arguments only."""

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "nafnet": nafnet.PRESETS,
    "restormer": restormer.PRESETS,
    "uformer": uformer.PRESETS,
    "rcdnet": rcdnet.PRESETS,
    "efficientderain": efficientderain.PRESETS,
}
"""Named settings of each network."""


def build_network(name: str, *, preset: str | None = None, **settings: Any) -> nn.Module:  # noqa: ANN401 - each network has its own settings
    """Make a network with fresh weights; it satisfies `RestorationNetwork`.

    Settings given here win over those of the preset; without a preset the network's own
    defaults fill the rest. A name with a colon, `package.module:factory`, is imported: see
    `samprior.training.networks.factory`.

    Raises:
        UsageError: an unknown name, preset or setting (the nearest known one is named), or
            settings that the network can't be built with.
    """
    if is_factory(name):
        if preset is not None:
            raise UsageError(
                f"{name} has no presets, got {preset!r}; leave the preset out, and give single "
                "settings with --set network.settings.KEY=VALUE"
            )
        return build_from_factory(name, settings)
    check_choice("network", name, NETWORKS)
    maker = NETWORKS[name]
    chosen: dict[str, Any] = {}
    if preset is not None:
        check_choice(f"preset of {name}", preset, PRESETS[name])
        chosen.update(PRESETS[name][preset])
    for setting in settings:
        check_choice(f"setting of {name}", setting, inspect.signature(maker).parameters)
    network = maker(**{**chosen, **settings})
    if not isinstance(network, RestorationNetwork):
        raise UsageError(f"{name} has no padding_multiple, which restoring needs")
    return network
