"""Frozen networks whose features tell how regions of an image relate: the semantic analyzers.

`build_analyzer` makes them by name. Weights that can't be had are an error, never replaced by
others; each analyzer says in `name` what it is, and that name goes with every result.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torchvision.models import VGG16_Weights, VGG19_Weights

from samprior.storage.choices import check_choice
from samprior.storage.errors import CheckpointError, UsageError
from samprior.storage.weights import check_weights_file

_CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_CHANNELS = (64, 128, 256, 512, 512)
_DEFAULT_LAYERS = {"vgg16": ("relu3_3", "relu4_3"), "vgg19": ("relu3_4", "relu4_4")}
_PUBLISHED = {"vgg16": VGG16_Weights.IMAGENET1K_V1, "vgg19": VGG19_Weights.IMAGENET1K_V1}
_ARCHITECTURES = {
    "vgg19": "vgg19",
    "vgg16": "vgg16",
    "random-vgg": "vgg19",
    "random-vgg16": "vgg16",
}
ANALYZERS = tuple(_ARCHITECTURES)
"""Names that `build_analyzer` knows."""


class SemanticAnalyzer(Protocol):
    """Maps images (B, 3, H, W) in [0, 1] to feature maps (B, C_l, H / s_l, W / s_l).

    The gradient passes to the images; nothing of the analyzer itself is ever trained.
    """

    name: str
    """What it is, reported with every result."""

    strides: tuple[int, ...]
    """s_l in pixels of each feature map. H and W are multiples of all of them."""

    def __call__(self, image: Tensor) -> list[Tensor]:
        """Feature maps of `image`, one per stride."""
        ...


class VggAnalyzer(nn.Module):
    """The convolutions of a VGG network up to the deepest wanted layer, frozen.

    Stays in evaluation mode also after `.train()`. Images are clamped to [0, 1], then normalised
    by ImageNet's mean and standard deviation. Parameters are uninitialised until loaded;
    `build_analyzer` does that. Their keys are torchvision's (`features.0.weight`, ...).

    Raises:
        UsageError: no layer, one twice, or one that the architecture doesn't have.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: str, *, layers: Sequence[str], name: str) -> None:
        super().__init__()
        self.name = name
        _check_layers(architecture, layers)
        modules, places = _vgg_layers(_CONVOLUTIONS[architecture])
        self.taps = tuple(places[layer] for layer in layers)
        self.strides = tuple(layer_stride(layer) for layer in layers)
        self.features = nn.Sequential(*modules[: max(self.taps) + 1])
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Do nothing: a frozen analyzer stays in evaluation mode."""
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of (B, 3, H, W) in [0, 1] at the wanted layers, in their order."""
        x = (image.clamp(0, 1) - self.mean) / self.std
        found = {}
        for place, module in enumerate(self.features):
            x = module(x)
            if place in self.taps:
                found[place] = x
        return [found[place] for place in self.taps]


def build_analyzer(
    name: str,
    *,
    layers: Sequence[str] | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> VggAnalyzer:
    """Make the semantic analyzer `vgg19`, `vgg16` (both ImageNet), `random-vgg` or `random-vgg16`.

    Args:
        name: `random-vgg` is an untrained vgg19, `random-vgg16` an untrained vgg16: the controls
            that tell what ImageNet adds, and what works without a download.
        layers: names such as `relu3_4` (block, convolution); None means the last of blocks 3 and
            4, with strides of 4 and 8 pixels.
        weights: a state dict with torchvision's keys in place of the published one, which
            torchvision downloads (548 MB for vgg19, 528 MB for vgg16) and checks once.
        seed: of the untrained ones alone. The global random state is neither used nor changed.

    Raises:
        UsageError: an unknown name or layer, or weights for an untrained one.
        CheckpointError: the weights can't be had, or don't fit.
    """
    check_choice("analyzer", name, ANALYZERS)
    architecture = _ARCHITECTURES[name]
    usual = _DEFAULT_LAYERS[architecture]
    layers = usual if layers is None else tuple(layers)
    label = name if weights is None else f"{name} ({weights.name})"
    label += "" if layers == usual else f" at {', '.join(layers)}"
    analyzer = VggAnalyzer(architecture, layers=layers, name=label)
    if name == architecture:
        source, state = _vgg_state(name, weights)
        _load_state(analyzer, state, source)
    elif weights is None:
        _fill_at_random(analyzer, seed)
    else:
        raise UsageError(f"{name} takes no weights, got {weights}; did you mean {architecture}?")
    return analyzer


def check_layers(name: str, layers: Sequence[str]) -> None:
    """Do nothing if the analyzer `name` can give the features of these layers.

    Raises:
        UsageError: an unknown name, no layer, one twice, or one that it doesn't have.
    """
    check_choice("analyzer", name, ANALYZERS)
    _check_layers(_ARCHITECTURES[name], layers)


def layer_stride(layer: str) -> int:
    """Pixels from one feature to the next at a layer such as `relu3_4`."""
    return int(2 ** (int(layer[4]) - 1))


def _check_layers(architecture: str, layers: Sequence[str]) -> None:
    counts = _CONVOLUTIONS[architecture]
    known = [f"relu{block}_{n + 1}" for block, count in enumerate(counts, 1) for n in range(count)]
    for layer in layers:
        check_choice(f"layer of {architecture}", layer, known)
    if not layers:
        raise UsageError(f"{architecture} needs at least one layer, such as relu3_3")
    if len(set(layers)) < len(layers):
        raise UsageError(f"layers of {architecture} count once each, got {', '.join(layers)}")


def _vgg_layers(convolutions: Sequence[int]) -> tuple[list[nn.Module], dict[str, int]]:
    """All modules of a VGG's convolutional part, and the place of each ReLU by its name."""
    modules: list[nn.Module] = []
    places: dict[str, int] = {}
    channels = 3
    for block, (count, width) in enumerate(zip(convolutions, _CHANNELS, strict=True), start=1):
        for number in range(1, count + 1):
            # Through the meta device: the default initialisation draws from the global generator.
            convolution = nn.Conv2d(channels, width, 3, padding=1, device="meta")
            modules += [convolution.to_empty(device="cpu"), nn.ReLU()]
            places[f"relu{block}_{number}"] = len(modules) - 1
            channels = width
        modules.append(nn.MaxPool2d(2))
    return modules, places


def _fill_at_random(analyzer: VggAnalyzer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in analyzer.features:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def _vgg_state(name: str, weights: Path | None) -> tuple[Path, Mapping[str, Tensor]]:
    """Where the weights of `name` lie, and their state dict."""
    published = _PUBLISHED[name]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rsplit("/", 1)[-1]
    source = weights or cached
    try:
        if weights is not None:
            check_weights_file(weights)
            state = torch.load(weights, map_location="cpu", weights_only=True)
        else:
            state = published.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
    except Exception as error:  # network, disk, or whatever a damaged file makes of the unpickler
        reason = re.sub(r"\s+", " ", str(error))[:200]
        raise CheckpointError(
            f"the weights of {name} can't be read from {source} ({type(error).__name__}: {reason});"
            f" put {published.url} there, or choose the analyzer random-vgg"
        ) from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{source} holds a {type(state).__name__}, not a state dict")
    return source, state


def _load_state(analyzer: VggAnalyzer, state: Mapping[str, Tensor], source: Path) -> None:
    for key, parameter in analyzer.state_dict().items():
        shape = getattr(state.get(key), "shape", None)
        if shape != parameter.shape:
            got = "lacks it" if shape is None else f"has {tuple(shape)}"
            raise CheckpointError(
                f"{source} doesn't fit {analyzer.name}: {key} must be {tuple(parameter.shape)}, "
                f"the file {got}; use a state dict of torchvision"
            )
        parameter.copy_(state[key])
