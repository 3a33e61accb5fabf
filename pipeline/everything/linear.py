"""Linear layers on a CPU by oneDNN, which PyTorch leaves to MKL.

For float32 PyTorch gives matrix products to MKL, which takes half the speed of an AMD processor
(86 against 170 GFLOP/s per core of an EPYC with AVX-512), and 1 x 1 convolutions to oneDNN.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of (..., R, W, C) with a weight (D, C) and a bias (D,)."""
    if not (ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32):
        return F.linear(x, weight, bias)
    # As images of one row each: with a single thread, PyTorch turns to MKL for fewer than 16.
    rows = x.flatten(0, -3)[:, None].permute(0, 3, 1, 2)  # (R, C, 1, W)
    mapped = F.conv2d(rows, weight[:, :, None, None], bias)
    return mapped.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))
