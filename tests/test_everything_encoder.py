"""Our image encoder: the official embeddings as exactly as float32 allows, in any batches."""

import copy
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import Tensor, nn

from samprior.pipeline.everything import attention
from samprior.pipeline.everything.attention import (
    RelativePositions,
    attend_blocked,
    attend_folded,
)
from samprior.pipeline.everything.encoder import BatchSize, Encoder, encode_batches
from samprior.pipeline.sam import random_sam
from samprior.storage.errors import UsageError


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        yield


def small_sam(**changes: Any) -> Sam:  # noqa: ANN401
    """A SAM whose encoder has windows and global blocks, heads of 16 and random positions."""
    shape = {
        "img_size": 256,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "out_chans": 24,
        "use_rel_pos": True,
        "window_size": 14,
        "global_attn_indexes": (1, 3),
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }
    sam = random_sam(0)
    sam.image_encoder = ImageEncoderViT(**shape | changes).eval()
    # The official class begins with zeros, with which no position could be mistaken.
    for name, values in sam.image_encoder.named_parameters():
        if "pos" in name or "norm" in name or "bias" in name:
            values.add_(torch.randn_like(values) * 0.4)
    return sam


def images(sam: Sam, num_images: int = 1) -> Tensor:
    side = sam.image_encoder.img_size
    return torch.randn(num_images, 3, side, side)


def exact(sam: Sam, inputs: Tensor) -> Tensor:
    """The official embeddings in float64."""
    embeddings: Tensor = copy.deepcopy(sam.image_encoder).double()(inputs.double())
    return embeddings


def error(got: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference."""
    return float((got - wanted).square().mean().sqrt())


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "padded windows": {},
    "windows that divide": {"window_size": 8},
    "windows of many sizes": {"window_size": 6, "img_size": 272},
    "window larger than the map": {"window_size": 20},
    "global only": {"window_size": 0},
    "one token": {"img_size": 16},
    "no relative positions": {"use_rel_pos": False},
    "no absolute positions": {"use_abs_pos": False},
    "no bias": {"qkv_bias": False},
    "other patches and activation": {"patch_size": 8, "img_size": 136, "act_layer": nn.ReLU},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_official_embeddings_to_float32_rounding(name: str) -> None:
    sam = small_sam(**ARCHITECTURES[name])
    inputs = images(sam, 2)
    wanted = exact(sam, inputs)
    got = Encoder(sam)(inputs)
    assert got.shape == wanted.shape
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert error(got, wanted) < 2 * error(sam.image_encoder(inputs), wanted)


def test_the_random_sam_of_the_dry_runs() -> None:
    sam = random_sam(0)
    inputs = images(sam)
    wanted = exact(sam, inputs)
    assert error(Encoder(sam)(inputs), wanted) < 2 * error(sam.image_encoder(inputs), wanted)


def test_tables_for_another_size_are_interpolated() -> None:
    sam = small_sam()
    for block in sam.image_encoder.blocks:
        for name in ("rel_pos_h", "rel_pos_w"):
            setattr(block.attn, name, nn.Parameter(torch.randn(9, 16) * 0.4))
    inputs = images(sam)
    wanted = exact(sam, inputs)
    assert error(Encoder(sam)(inputs), wanted) < 2 * error(sam.image_encoder(inputs), wanted)


@pytest.mark.parametrize("scores", [1, 3000, 10**9])
def test_any_number_of_scores_at_once(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sam = small_sam(window_size=6)
    inputs = images(sam, 2)
    wanted = exact(sam, inputs)
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", scores)
    assert error(Encoder(sam)(inputs), wanted) < 2 * error(sam.image_encoder(inputs), wanted)


@pytest.mark.parametrize("rows", [7, 3])
def test_folded_positions_are_the_same_attention(rows: int) -> None:
    q, k, v = torch.randn(3, 4, 7, 5, 12, dtype=torch.float64)
    positions = RelativePositions(
        rows=torch.randn(7, 7, 12, dtype=torch.float64),
        columns=torch.randn(5, 5, 12, dtype=torch.float64),
    )
    q = q[:, :rows, :4]
    blocked = attend_blocked(q, k, v, positions)
    torch.testing.assert_close(attend_folded(q, k, v, positions), blocked)


def test_folded_attention_takes_all_windows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a GPU does, whose branches are chosen by the type of the device.
    sam = small_sam(window_size=6, img_size=272)
    inputs = images(sam, 2)
    wanted = exact(sam, inputs)
    monkeypatch.setattr(attention, "on_cpu", lambda tensor: False)
    assert error(Encoder(sam)(inputs), wanted) < 2 * error(sam.image_encoder(inputs), wanted)


def test_a_batch_is_its_images() -> None:
    sam = small_sam()
    inputs = images(sam, 3)
    encoder = Encoder(sam)
    one_by_one = torch.cat([encoder(image[None]) for image in inputs])
    torch.testing.assert_close(encoder(inputs), one_by_one, rtol=0, atol=1e-5)


def test_the_model_is_left_as_it_was_and_its_weights_are_shared() -> None:
    sam = small_sam()
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    inputs = images(sam)
    given = inputs.clone()
    encoder = Encoder(sam)
    first = encoder(inputs)
    assert torch.equal(encoder(inputs), first)
    assert torch.equal(inputs, given)
    assert all(torch.equal(value, before[key]) for key, value in sam.state_dict().items())
    sam.image_encoder.blocks[0].mlp.lin1.weight.zero_()
    assert not torch.equal(encoder(inputs), first)


def test_bfloat16_is_as_near_as_the_official_encoder_in_it() -> None:
    sam = small_sam()
    inputs = images(sam)
    wanted = exact(sam, inputs)
    got = Encoder(sam, precision="bfloat16")(inputs)
    official = copy.deepcopy(sam.image_encoder).bfloat16()(inputs.bfloat16())
    assert got.dtype == torch.float32
    assert error(got, wanted) < error(official, wanted)


def test_precisions_that_cannot_be_are_told() -> None:
    sam = small_sam()
    with pytest.raises(UsageError, match="use bfloat16 or float32"):
        Encoder(sam, precision="float16")
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        Encoder(sam, precision="bfloat")


def test_warming_up_without_compiling_does_nothing() -> None:
    sam = small_sam()
    encoder = Encoder(sam)
    sam.image_encoder.patch_embed = nn.Module()  # can't be called
    encoder.warm_up(BatchSize(current=2))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_embeddings_are_the_official_ones() -> None:
    sam = small_sam()
    inputs = images(sam, 2)
    wanted = exact(sam, inputs)
    encoder = Encoder(sam, compile=True)
    encoder.warm_up(BatchSize(current=2))
    assert error(encoder(inputs), wanted) < 2 * error(sam.image_encoder(inputs), wanted)


def encoder_that_holds(
    most: int, kind: type[Exception], message: str, seen: list[int]
) -> partial[Tensor]:
    def encode(inputs: Tensor) -> Tensor:
        seen.append(len(inputs))
        if len(inputs) > most:
            raise kind(message)
        return inputs.mean((2, 3), keepdim=True)

    return partial(encode)


SHORTAGES = [
    (torch.OutOfMemoryError, "CUDA out of memory"),
    (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    (MemoryError, ""),
]


@pytest.mark.parametrize(("kind", "message"), SHORTAGES)
def test_batches_are_halved_until_they_fit(kind: type[Exception], message: str) -> None:
    inputs = list(torch.randn(11, 1, 3, 4, 4))
    seen: list[int] = []
    size = BatchSize(current=8)
    encoder = encoder_that_holds(2, kind, message, seen)
    got = list(encode_batches(encoder, inputs, batch_size=size))
    assert [tuple(one.shape) for one in got] == [(1, 3, 1, 1)] * 11
    torch.testing.assert_close(torch.cat(got), torch.cat(inputs).mean((2, 3), keepdim=True))
    assert seen == [8, 4, 2, 2, 2, 2, 2, 1]
    assert size.current == 2
    assert size.notes == [
        "encoder batch halved to 4: out of memory",
        "encoder batch halved to 2: out of memory",
    ]
    assert len(list(encode_batches(encoder, inputs[:2], batch_size=size))) == 2
    assert seen[8:] == [2]  # what was learnt holds for the next call


@pytest.mark.parametrize(("kind", "message"), SHORTAGES)
def test_one_image_that_does_not_fit_is_an_error(kind: type[Exception], message: str) -> None:
    encoder = encoder_that_holds(0, kind, message, [])
    with pytest.raises(kind):
        list(
            encode_batches(encoder, [torch.zeros(1, 3, 4, 4)] * 3, batch_size=BatchSize(current=2))
        )


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    seen: list[int] = []
    encoder = encoder_that_holds(0, RuntimeError, "shapes do not fit", seen)
    with pytest.raises(RuntimeError, match="shapes"):
        list(
            encode_batches(encoder, [torch.zeros(1, 3, 4, 4)] * 3, batch_size=BatchSize(current=2))
        )
    assert seen == [2]


def test_a_batch_holds_an_image_at_least() -> None:
    with pytest.raises(UsageError, match="at least 1 image, got 0"):
        BatchSize(current=0)
