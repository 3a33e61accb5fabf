"""What a machine has, what is missing, and what to do about it: the findings of `samprior doctor`.

Nothing is changed: no download, no file that stays. Each finding is true when it is told: a GPU has
computed, Ray was up, checkpoints were read.
"""

import importlib
import os
import platform
import resource
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from samprior.pipeline.checkpoints import (
    CHECKPOINTS,
    OfficialCheckpoint,
    checkpoint_digest,
    default_cache,
)
from samprior.storage.errors import CheckpointError, SampriorError
from samprior.storage.files import STAGED_SUFFIX

Level = Literal["ok", "note", "bad"]

EXTRAS = {
    "remote": "stores in s3://, gs:// and az://",
    "lpips": "evaluate --lpips",
    "export": "export-model --to onnx",
    "tensorboard": "tensorboard = true",
    "ray-train": "train --launcher ray",
    "regions": "--set min_mask_region_area=... with --engine official",
}
"""What the optional libraries are for."""

CHECKPOINT_GB = {"vit_h": 2.6, "vit_l": 1.3, "vit_b": 0.4}
_GIB = 2**30
_SMALL_MEMORY_BYTES = 8 * _GIB
_FEW_FILES = 1024
_SMALL_SHARED_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    name: str
    """What was looked at: one word, or several with blanks."""
    level: Level
    """ok; note: something will be slower or not work; bad: it has to be mended."""
    text: str
    remedy: str | None = None
    """What to do; every bad finding has one."""


def examine(*, quick: bool = False, cache: Path | None = None) -> Iterator[Finding]:
    """Look at everything, in the order to be shown.

    Args:
        quick: leave out what takes seconds: starting Ray, reading checkpoints.
        cache: folder of the checkpoints; None takes the usual one.
    """
    folder = default_cache() if cache is None else cache
    yield Finding("python", "ok", f"Python {platform.python_version()} at {sys.executable}")
    yield Finding("samprior", "ok", f"samprior {version('samprior')}")
    yield from _libraries()
    yield from _machine()
    yield from _gpus()
    yield _folder_finding("cache", folder, needed_gb=0.0)
    yield from _checkpoints(folder, quick=quick)
    yield from _vgg()
    yield _folder_finding("temporary files", Path(tempfile.gettempdir()), needed_gb=1.0)
    yield from _ray(quick=quick)


def _libraries() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    missing: dict[str, list[str]] = {}
    for text in requires("samprior") or ():
        wanted = Requirement(text)
        extra = next((e for e in EXTRAS if wanted.marker and _is_of(wanted, e)), None)
        if wanted.marker and extra is None:
            continue
        try:
            got = version(wanted.name)
        except PackageNotFoundError:
            got = None
        if got is not None and wanted.specifier.contains(got, prereleases=True):
            if extra is None:
                yield Finding("library", "ok", f"{wanted.name} {got}")
        elif extra is not None:
            missing.setdefault(extra, []).append(wanted.name)
        else:
            found = f"{wanted.name} {got}" if got else f"{wanted.name} is not installed"
            remedy = f'pip install "{wanted.name}{wanted.specifier}"'
            yield Finding("library", "bad", f"{found}, wanted {wanted.specifier}", remedy)
    for extra, names in missing.items():
        text = f"{', '.join(names)}: not there or too old; only for {EXTRAS[extra]}"
        yield Finding("library", "note", text, f'pip install "samprior[{extra}]"')


def _is_of(wanted: object, extra: str) -> bool:
    marker = getattr(wanted, "marker", None)
    return (
        marker is not None
        and not marker.evaluate({"extra": ""})
        and bool(marker.evaluate({"extra": extra}))
    )


def _machine() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("cpu", "ok", f"{cores} CPU cores, {platform.machine()}")
    memory = _memory_bytes()
    text = f"{memory / _GIB:.1f} GiB memory"
    if memory < _SMALL_MEMORY_BYTES:
        remedy = "take --model vit_b or --segmenter superpixel, and few --workers"
        yield Finding("memory", "note", f"{text}, little for SAM ViT-H", remedy)
    else:
        yield Finding("memory", "ok", text)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FEW_FILES:
        text = f"{soft} files may be open at a time"
        yield Finding("open files", "note", text, "ulimit -n 4096")
    from samprior.storage.compiled import numba

    if numba is None:
        text = "kernels are interpreted (numba is missing, or switched off): readers are slow"
        yield Finding("kernels", "note", text, 'pip install "numba>=0.60"')


def _memory_bytes() -> int:
    """Memory of the machine, or of the container where that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return total


def _broken(library: str) -> Finding | None:
    """What keeps a library that is installed from being loaded, such as a missing driver's."""
    try:
        importlib.import_module(library)
    except Exception as error:  # whatever its start runs into
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = f"pip install --force-reinstall {library}"
        return Finding(library, "bad", f"can't be loaded: {reason}", remedy)
    return None


def _gpus() -> Iterator[Finding]:
    if broken := _broken("torch"):
        yield broken
        return
    import torch

    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else ""
        built = built or "torch is built without CUDA"
        remedy = "fine for superpixel masks and small networks; if there is one, see nvidia-smi"
        yield Finding("gpu", "note", f"no GPU ({built}): SAM ViT-H will be slow", remedy)
        return
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        text = f"cuda:{index} {about.name}, {about.total_memory / _GIB:.1f} GiB"
        try:
            device = torch.device("cuda", index)
            assert float(torch.ones(8, device=device).sum()) == 8
            free, _ = torch.cuda.mem_get_info(index)
            yield Finding("gpu", "ok", f"{text}, {free / _GIB:.1f} GiB free")
        except (RuntimeError, AssertionError) as error:
            reason = (str(error).splitlines() or ["wrong sums"])[0]
            remedy = "install the torch that fits the driver (nvidia-smi), or give --device cpu"
            yield Finding("gpu", "bad", f"{text} can't compute: {reason}", remedy)


def _folder_finding(name: str, folder: Path, *, needed_gb: float) -> Finding:
    """Whether a folder can be written to, and its room."""
    place = folder
    while not _seen(place.exists):
        place = place.parent
    variable = "SAMPRIOR_CACHE" if name == "cache" else "TMPDIR"
    remedy = f"name another folder: export {variable}=..."
    if not place.is_dir() or not _writable(place):
        return Finding(name, "bad", f"{folder} can't be written to", remedy)
    free_gb = shutil.disk_usage(place).free / 1e9
    text = f"{folder}, {free_gb:.0f} GB free"
    if free_gb < needed_gb:
        return Finding(name, "note", text, f"make room, or {remedy}")
    return Finding(name, "ok", text)


def _seen(look: Callable[[], bool]) -> bool:
    """Whether something is there; where one may not look, there is nothing to use."""
    try:
        return look()
    except PermissionError:
        return False


def _writable(folder: Path) -> bool:
    """By doing it: rights alone say nothing of a read-only disk."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _checkpoints(
    cache: Path, *, quick: bool, checkpoints: Mapping[str, OfficialCheckpoint] = CHECKPOINTS
) -> Iterator[Finding]:
    for model, wanted in checkpoints.items():
        file, name = cache / wanted.file, f"SAM {model}"
        size = f"{CHECKPOINT_GB[model]} GB"
        part = file.with_name(file.name + STAGED_SUFFIX)
        if not _seen(file.is_file):
            text = f"not yet downloaded ({size}); precompute does so"
            if _seen(part.is_file):
                text = f"{part.stat().st_size / 1e9:.1f} of {size} downloaded; precompute goes on"
            yield Finding(name, "ok", text)
        elif quick:
            yield Finding(name, "ok", f"{file} (not read)")
        else:
            yield _checked(name, file, wanted)


def _checked(name: str, file: Path, wanted: OfficialCheckpoint) -> Finding:
    try:
        got = checkpoint_digest(file)
    except CheckpointError as error:
        return Finding(name, "bad", str(error), f"make {file} readable, or delete it")
    if got.startswith(wanted.sha256_prefix):
        return Finding(name, "ok", f"{file}, SHA-256 {got[:12]}... as published")
    text = f"{file} has SHA-256 {got[:12]}..., wanted {wanted.sha256_prefix}..."
    return Finding(name, "bad", text, f"rm {shlex.quote(str(file))}; precompute downloads it again")


def _vgg() -> Iterator[Finding]:
    """The weights of SGR's analyzer, where torchvision keeps them."""
    if broken := _broken("torchvision"):
        yield broken
        return
    import torch
    from torchvision.models import VGG19_Weights

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG19_Weights.IMAGENET1K_V1.url).name
    there = f"{file}" if _seen(file.is_file) else "not yet downloaded (548 MB); train does so"
    yield Finding("VGG-19 of SGR", "ok", there)


def _ray(*, quick: bool) -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    where = f"the cluster at {address} (RAY_ADDRESS)" if address else "a private Ray"
    if quick:
        yield Finding("ray", "ok", f"{where} (not tried)")
        return
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < _SMALL_SHARED_BYTES:
        text = (
            f"/dev/shm has {shutil.disk_usage(shared).total / 2**20:.0f} MB, which slows Ray down"
        )
        yield Finding("shared memory", "note", text, "docker run --shm-size 2g ...")
    if broken := _broken("ray"):
        yield broken
        return
    try:
        yield Finding("ray", "ok", f"{where}: {_ray_resources()}")
    except SampriorError as error:
        remedy = "precompute --workers 0 needs no Ray"
        remedy += "; or unset RAY_ADDRESS" if address else ""
        yield Finding("ray", "bad", str(error), remedy)


def _ray_resources() -> str:
    import ray

    from samprior.pipeline.ray_session import ray_session

    with ray_session(advice="see below"):
        has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return f"starts, with {has.get('CPU', 0):.0f} CPUs and {has.get('GPU', 0):.0f} GPUs"
