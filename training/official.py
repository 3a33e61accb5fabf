"""Take in weights that the authors of a network published, as a checkpoint of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from samprior.storage.errors import UsageError
from samprior.storage.files import sha256_of
from samprior.training.checkpoint import load_official, save_checkpoint
from samprior.training.networks import build_network


def import_official(
    file: Path,
    out: Path,
    *,
    name: str,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Write the weights in a published `file` to `out` (.safetensors), which says what it is.

    Only tensors are read, and all keys and shapes must be those of the network; counters of batch
    norms alone may be missing (`load_official`). The record names the file and its SHA-256.

    Returns:
        The network with these weights, in eval mode.

    Raises:
        UsageError: an unknown network, preset or setting, or an `out` with another ending.
        CheckpointError: the file is missing, damaged, holds more than tensors, or is of another
            network.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"checkpoints end in .safetensors, got {out}")
    given = dict(settings or {})
    network = build_network(name, preset=preset, **given)
    load_official(network, file)
    record = {
        "network": {"name": name, "preset": preset, "settings": given},
        "origin": {"file": file.name, "sha256": sha256_of(file)},
    }
    save_checkpoint(out, network.state_dict(), record)
    return network.eval()
