"""Export of a trained network as a file that runs without samprior: torch.export, ONNX, weights.

    result = export_network(network, Path("student.onnx"), to="onnx", record=record)

Network 1 alone is in it, with its official keys. What was written to the file is run beside the
network before the file appears: a file that restores otherwise is never left behind.
"""

# B images, H x W pixels, M multiple that a network pads to

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from samprior.storage.choices import check_choice
from samprior.storage.errors import CheckpointError, UsageError
from samprior.storage.files import write_bytes

TOLERANCE = 1e-4
"""Largest difference to the network that an export may have, for values in [0, 1]: a fortieth of an
8-bit level. Where values are larger, as those of an untrained network, it grows with them."""

_INPUT, _OUTPUT, _RECORD = "image", "restored", "samprior"
_AXES = {0: "batch", 2: "height", 3: "width"}
_MIN_UNIT_PX = 16
_ONNX_LIMIT = 2**31 - 1

Shape = tuple[int, int, int, int]
Restorer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares with the network."""

    file: Path
    smallest_px: int | None
    """Least height and width that it takes; None: one size alone."""
    compared: tuple[Shape, ...]
    """Shapes (B, 3, H, W) that both restored."""
    largest_difference: float
    """Between any two values of the restored images, which lie in [0, 1]."""


def export_network(
    network: nn.Module,
    file: Path,
    *,
    to: str,
    record: Mapping[str, Any],
    size: tuple[int, int] | None = None,
) -> Exported:
    """Write a network to `file`, and compare what was written with it.

    Args:
        network: in eval mode on the CPU; takes and gives float32 (B, 3, H, W) in [0, 1].
        file: written whole or not at all.
        to: "torch" (a program of torch.export), "onnx", or "safetensors" (weights by their
            official keys).
        record: where the network comes from, kept in the file as JSON.
        size: height and width of the only image that the file will take; None: any size above the
            network's padding multiple, in batches of any number.

    Raises:
        UsageError: another format, a size below 1, or a size for bare weights.
        CheckpointError: the network can't be exported so, or the export restores otherwise than it.
    """
    check_choice("format", to, _WRITERS)
    if size is not None and (to == "safetensors" or min(size) < 1):
        raise UsageError(
            f"got --size {size[0]}x{size[1]}; weights (safetensors) have no size, and others take "
            "a height and a width of at least 1, such as 720x1280"
        )
    content, run = _WRITERS[to](network, size, record)
    multiple = int(getattr(network, "padding_multiple", 1))
    shapes = _compared_shapes(size, multiple)
    largest = _compare(network, run, shapes)
    write_bytes(file, content)
    smallest = None if size is not None else (1 if to == "safetensors" else multiple + 1)
    return Exported(file, smallest, tuple(shapes), largest)


def _to_torch(
    network: nn.Module, size: tuple[int, int] | None, record: Mapping[str, Any]
) -> tuple[bytes, Restorer]:
    stream = io.BytesIO()
    torch.export.save(
        _program(network, size), stream, extra_files={f"{_RECORD}.json": _told(record)}
    )
    content = stream.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


def _to_onnx(
    network: nn.Module, size: tuple[int, int] | None, record: Mapping[str, Any]
) -> tuple[bytes, Restorer]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise UsageError(
            f"--to onnx needs {error.name}, which is not installed; pip install 'samprior[export]'"
        ) from error
    program = _program(network, size)
    with _quietly(), _one_attention(), _explained("ONNX", size):
        made = torch.onnx.export(
            program,
            (),
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=None if size is not None else {_INPUT: _AXES},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert made is not None
        model = made.model_proto
        onnx.helper.set_model_props(model, {_RECORD: _told(record)})
        onnx.checker.check_model(model, full_check=True)
    if model.ByteSize() > _ONNX_LIMIT:
        raise CheckpointError("the network has over 2 GiB, more than one ONNX file can hold")
    content = model.SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> Tensor:
        (restored,) = session.run([_OUTPUT], {_INPUT: image.numpy()})
        return torch.from_numpy(restored)

    return content, run


def _to_safetensors(
    network: nn.Module, size: tuple[int, int] | None, record: Mapping[str, Any]
) -> tuple[bytes, Restorer]:
    flat = {name: tensor.contiguous() for name, tensor in sorted(network.state_dict().items())}
    content = safetensors.torch.save(flat, {_RECORD: _told(record)})
    written = safetensors.torch.load(content)

    def run(image: Tensor) -> Tensor:
        restored: Tensor = torch.func.functional_call(network, written, (image,), strict=True)
        return restored

    return content, run


_WRITERS: Mapping[
    str,
    Callable[
        [nn.Module, tuple[int, int] | None, Mapping[str, Any]],
        tuple[bytes, Restorer],
    ],
] = {"torch": _to_torch, "onnx": _to_onnx, "safetensors": _to_safetensors}
FORMATS = tuple(_WRITERS)
"""What `export_network` can write."""


def _program(network: nn.Module, size: tuple[int, int] | None) -> ExportedProgram:
    """The network as a graph of torch's operators, for one size or for all."""
    multiple = int(getattr(network, "padding_multiple", 1))
    axes: dict[int, Dim] | None = None
    if size is None:
        least = {"batch": 1, "height": multiple + 1, "width": multiple + 1}
        axes = {axis: Dim(name, min=least[name]) for axis, name in _AXES.items()}
        # No axis is 1 or a multiple: torch would take that for a property of all images.
        unit = max(multiple, _MIN_UNIT_PX)
        example = torch.zeros(2, 3, 2 * unit + unit // 2 + 1, 3 * unit + unit // 4 + 1)
    else:
        example = torch.zeros(1, 3, *size)
    with torch.no_grad(), _quietly(), _one_attention(), _explained("torch.export", size):
        program = torch.export.export(
            network,
            (example,),
            dynamic_shapes=None if axes is None else (axes,),
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _tidy(program)
    return program


def _tidy(program: ExportedProgram) -> None:
    """Take off what speaks of the example and of this machine.

    torch asserts at run time what it found of the example and can't prove of all sizes, such as
    that a slice is not contiguous. That is true of no property which the operators rely on, and
    `_compare` tries sizes of which it is false.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        node.meta.pop("stack_trace", None)  # paths of this machine
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _compared_shapes(size: tuple[int, int] | None, multiple: int) -> list[Shape]:
    """Shapes to compare: whole multiples and others on each axis, and the smallest."""
    if size is not None:
        return [(1, 3, *size)] * 2
    unit = max(multiple, _MIN_UNIT_PX)
    return [
        (1, 3, 2 * unit, 3 * unit),
        (2, 3, multiple + 1, multiple + 1),
        (1, 3, 2 * unit, 2 * unit + 1),
        (1, 3, 3 * unit - 1, 2 * unit),
    ]


@torch.no_grad()
def _compare(network: nn.Module, run: Restorer, shapes: Sequence[Shape]) -> float:
    """The largest difference over images of noise.

    Raises:
        CheckpointError: it is above the tolerance, or shapes differ.
    """
    largest, generator = 0.0, torch.Generator().manual_seed(0)
    for shape in shapes:
        image = torch.rand(shape, generator=generator)
        wanted, got = network(image), run(image)
        if wanted.shape != got.shape:
            raise CheckpointError(
                f"the export gives {tuple(got.shape)} for an image of {shape}, the network "
                f"{tuple(wanted.shape)}; nothing was written. Try --size {shape[2]}x{shape[3]}"
            )
        difference = float((wanted - got).abs().max())
        allowed = TOLERANCE * max(1.0, float(wanted.abs().max()))
        if not difference <= allowed:  # also what is not a number
            raise CheckpointError(
                f"the export differs from the network by {difference:.2g} for an image of "
                f"{shape[2]}x{shape[3]}, at most {allowed:.2g} is allowed; nothing was written. "
                "Try --size HxW, or another --to"
            )
        largest = max(largest, difference)
    return largest


def _told(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True)


def _one_attention() -> contextlib.AbstractContextManager[None]:
    """Trace attention as plain products: other kernels lay their results out in other ways, and a
    graph of one fits no other."""
    return sdpa_kernel(SDPBackend.MATH)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep back the exporters' warnings, which are about torch's own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _explained(what: str, size: tuple[int, int] | None) -> Iterator[None]:
    """Turn what the exporters raise, of whatever kind, into one line."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        advice = "--size HxW, which exports it for one size" if size is None else "another --to"
        raise CheckpointError(
            f"{what} can't express the network ({reason}); try {advice}"
        ) from error
