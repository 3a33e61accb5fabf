"""LPIPS: the package's network is called as it wants to be, and what is missing is said.

The published weights are not here: the network's own weights are random in these tests.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samprior.storage.errors import CheckpointError, UsageError
from samprior.training.perceptual import MIN_SIDE_PX, LpipsMeasure, build_lpips

CPU = torch.device("cpu")


class Distance(nn.Module):
    """Mean absolute difference; notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[float, float]] = []

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        self.ranges.append((float(first.min()), float(second.max())))
        return (first - second).abs().mean().reshape(1, 1, 1, 1)


def test_pictures_come_as_minus_one_to_one() -> None:
    network = Distance()
    black, white = (np.full((40, 32, 3), level, np.uint8) for level in (0, 255))
    found = LpipsMeasure(network, device=CPU)(white, (black, white))
    assert [dict(one) for one in found] == [{"lpips": 2.0}, {"lpips": 0.0}]
    assert network.ranges == [(-1.0, 1.0), (1.0, 1.0)]


def test_small_pictures_and_broken_weights_are_refused() -> None:
    small = np.zeros((MIN_SIDE_PX - 1, 90, 3), np.uint8)
    with pytest.raises(UsageError, match="at least 31x31 pixels, got 90x30"):
        LpipsMeasure(Distance(), device=CPU)(small, [small])
    picture = np.zeros((40, 40, 3), np.uint8)

    class Broken(nn.Module):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return torch.tensor(float("nan"))

    with pytest.raises(CheckpointError, match="not a number"):
        LpipsMeasure(Broken(), device=CPU)(picture, [picture])


def test_the_packages_network_runs(rng: np.random.Generator) -> None:
    pytest.importorskip("lpips")
    torch.manual_seed(0)
    measure = LpipsMeasure(build_lpips(pretrained=False), device=CPU)
    clean = rng.integers(0, 256, (MIN_SIDE_PX, 50, 3), dtype=np.uint8)
    other = rng.integers(0, 256, clean.shape, dtype=np.uint8)
    different, same = (one["lpips"] for one in measure(clean, (other, clean)))
    assert same == 0
    assert different != 0


def test_missing_weights_are_named_with_their_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("lpips")

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no network.*alexnet-owt-7be5be79.pth into .*check"):
        build_lpips()


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UsageError, match=r"pip install 'samprior\[lpips\]'"):
        build_lpips()
