"""Checkpoints: safetensors files with one JSON record, written whole, equal for equal runs.

Nothing is pickled, so a checkpoint from elsewhere can't run code, and the bytes don't depend on
whether the run was broken off in between.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from samprior.storage.errors import CheckpointError, UsageError
from samprior.storage.files import write_bytes
from samprior.storage.weights import check_weights_file
from samprior.training.networks import build_network, is_factory

Tensors = dict[str, Tensor]
OFFICIAL = (".pth", ".pt", ".ckpt")
"""Endings of files that others wrote, which don't say what they are."""

_RECORD = "samprior"  # one metadata key: safetensors does not keep the order of several


def save_checkpoint(file: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors by name and a JSON record to `file`, whole or not at all."""
    flat = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    metadata = {_RECORD: json.dumps(record, sort_keys=True)}
    write_bytes(file, safetensors.torch.save(flat, metadata))


def load_checkpoint(file: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save_checkpoint` wrote, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or not samprior's.
    """
    with _open(file) as (content, record):
        return {name: content.get_tensor(name) for name in content.keys()}, record  # noqa: SIM118  # no mapping


def read_record(file: Path) -> dict[str, Any]:
    """The JSON record of a checkpoint, without its tensors; raises what `load_checkpoint` does."""
    with _open(file) as (_, record):
        return record


def require_same_settings(file: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Do nothing if the record `found` in `file` says all that `wanted` says.

    Raises:
        CheckpointError: it doesn't; the message names the settings, with both values.
    """
    if changed := _differences(found, wanted):
        raise CheckpointError(
            f"{file} is of a run with other settings ({'; '.join(changed[:3])}); choose another "
            f"out, or remove {file.parent} to train that stage anew"
        )


@contextmanager
def _open(file: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file (safetensors has no types for it) and its record."""
    try:
        with safe_open(file, framework="pt") as content:
            yield content, json.loads((content.metadata() or {})[_RECORD])
    except FileNotFoundError as error:
        # resolved.toml is written as a run begins, its model.safetensors as it ends.
        hint = (
            f"the run {file.parent} has not ended, give its `samprior train` again"
            if (file.parent / "resolved.toml").exists()
            else "train one with `samprior train`"
        )
        raise CheckpointError(f"{file} does not exist; {hint}") from error
    except KeyError as error:
        raise CheckpointError(f"{file} is a safetensors file, but not one of samprior's") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file} is no checkpoint of samprior ({error})") from error


def load_network(
    path: Path, *, name: str | None = None, preset: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a checkpoint, in eval mode on the CPU, and the checkpoint's record.

    Args:
        path: a model.safetensors of ours, a run's folder that holds one, or an official .pth
            file, for which `name` and `preset` say what it is.
        name: architecture of an official file. A checkpoint of ours says it itself, but one made
            by `package.module:factory` is only opened when that is given here: a file from
            elsewhere must not choose which code runs.
        preset: shape of an official file.

    Raises:
        CheckpointError: the file is missing, damaged, or for another network.
    """
    file = _file_of(path)
    if file.suffix in OFFICIAL:
        if name is None:
            raise CheckpointError(f"{file}: say what it is with --network and --preset")
        network = build_network(name, preset=preset)
        load_official(network, file)
        told: dict[str, Any] = {"name": name, "preset": preset, "settings": {}}
        return network.eval(), {"network": told, "origin": file.name}
    tensors, record = load_checkpoint(file)
    if "network" not in record:
        raise CheckpointError(f"{file} holds no network to run; use the run's model.safetensors")
    made = record["network"]
    _require_known_maker(file, made["name"], name)
    if preset is not None:
        raise UsageError(f"{file} says what it is; leave out --preset")
    network = build_network(made["name"], preset=made["preset"], **made["settings"])
    load_strictly(network, tensors, file)
    return network.eval(), record


def what_it_lacks(path: Path) -> tuple[bool, bool]:
    """Whether `load_network` needs a network's name for a checkpoint, and whether its preset.

    Both for weights that don't say what they are; the name alone for a network of the user's own,
    whose code no file may choose.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    file = _file_of(path)
    if file.suffix in OFFICIAL:
        return True, True
    with _open(file) as (_, record):
        return is_factory(record.get("network", {}).get("name")), False


def _file_of(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path


def _require_known_maker(file: Path, recorded: object, given: str | None) -> None:
    """Refuse a file that names code which the user didn't, and a user who names other code."""
    if not is_factory(recorded):
        if given is not None:
            raise UsageError(f"{file} says what it is; leave out --network and --preset")
    elif given is None:
        raise CheckpointError(
            f"{file} was trained with the network {recorded!r}, which is code outside samprior; if "
            f"you trust it, give --network {recorded}"
        )
    elif given != recorded:
        raise CheckpointError(f"{file} was trained with the network {recorded!r}, not {given!r}")


def read_official(file: Path) -> Tensors:
    """The weights in a published .pth file, without running any code it may hold.

    `{"params": ...}` (NAFNet, Restormer), `{"state_dict": ...}` (Uformer) and bare state dicts
    are known; the `module.` that DataParallel leaves before each key is taken off.

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors.
    """
    check_weights_file(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is damaged or holds more than tensors; get it again, or save its state dict "
            "alone with torch.save"
        ) from error
    except Exception as error:  # the unpickler meets damage with whatever exception it likes
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{file} can't be read as plain weights ({reason})") from error
    for wrapper in ("params", "state_dict"):
        if isinstance(content, dict) and wrapper in content:
            content = content[wrapper]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CheckpointError(f"{file} holds no state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def load_official(module: nn.Module, file: Path) -> None:
    """Load a published .pth file whose keys and shapes must all fit.

    Only counters of batch norms may be missing, as files of old versions of torch lack them: they
    are 0 then.

    Raises:
        CheckpointError: what `read_official` and `load_strictly` raise.
    """
    # No network here reads the counters: its batch norms average with a fixed momentum.
    counters = {
        name: torch.zeros_like(value)
        for name, value in module.state_dict().items()
        if name.rpartition(".")[2] == "num_batches_tracked"
    }
    load_strictly(module, {**counters, **read_official(file)}, file)


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], origin: Path) -> None:
    """Load a state dict whose keys and shapes must all fit.

    Raises:
        CheckpointError: they don't; the message says how many and shows some.
    """
    wanted = module.state_dict()
    wrong = [
        *(f"{name} is missing" for name in wanted.keys() - tensors.keys()),
        *(f"{name} is not known" for name in tensors.keys() - wanted.keys()),
        *(
            f"{name} is {tuple(tensors[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in wanted.keys() & tensors.keys()
            if tensors[name].shape != wanted[name].shape
        ),
    ]
    if wrong:
        raise CheckpointError(
            f"{origin} does not fit the network: {len(wrong)} differences, such as "
            f"{'; '.join(sorted(wrong)[:3])}"
        )
    module.load_state_dict(dict(tensors))


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What of `wanted` is otherwise in `found`, by dotted name, with both values."""
    lines = []
    for name, value in wanted.items():
        there = found.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            lines += [f"{name}.{line}" for line in _differences(there, value)]
        elif there != value:
            lines.append(f"{name}: {there} there, {value} now")
    return lines
