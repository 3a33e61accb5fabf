"""The decoder of the mask engine: the official one's outputs, as close to float64 as its own."""

import copy
from dataclasses import fields

import pytest
import torch
from segment_anything.modeling import Sam, TwoWayTransformer
from torch import Tensor

from samprior.pipeline.everything import products
from samprior.pipeline.everything.decoder import Decoder
from samprior.pipeline.everything.upscaling import LOGITS_PER_TOKEN, Upscaling
from samprior.pipeline.sam import random_sam
from samprior.storage.errors import UsageError

SIDE = 16


@pytest.fixture(scope="module")
def sam() -> Sam:
    """Biases and norms are all 0 and 1 in an untrained model; here they are not."""
    model = random_sam(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.mask_decoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.fixture(scope="module")
def embedding(sam: Sam) -> Tensor:
    width = sam.mask_decoder.transformer_dim
    return torch.randn(width, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def some_points(count: int, seed: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 2, dtype=torch.float64, generator=generator) * SIDE * 16


@torch.no_grad()
def official(
    sam: Sam, embedding: Tensor, points: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Masks (P, 3, h, w) and predicted IoUs (P, 3) of the official decoder."""
    labels = torch.ones(len(points), 1, dtype=torch.int)
    sparse, dense = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
    decoder = copy.deepcopy(sam.mask_decoder).to(dtype)
    masks, predicted = decoder(
        image_embeddings=embedding[None].to(dtype),
        image_pe=sam.prompt_encoder.get_dense_pe().to(dtype),
        sparse_prompt_embeddings=sparse.to(dtype),
        dense_prompt_embeddings=dense.to(dtype),
        multimask_output=True,
    )
    return masks, predicted


def ours(
    sam: Sam,
    embedding: Tensor,
    points: Tensor,
    wanted: tuple[int, int] = (SIDE, SIDE),
    *,
    prompts: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    decoder, upscaling = Decoder(sam), Upscaling(sam.mask_decoder)
    image = decoder.image(embedding)
    decoded = decoder(image, points)
    shared = upscaling.image(image, grid=(SIDE, SIDE), wanted=wanted)
    return upscaling(shared, decoded, prompts, grid=(SIDE, SIDE)), decoded.predicted_iou


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_outputs_are_the_official_ones(
    sam: Sam, embedding: Tensor, count: int, scale: float
) -> None:
    points = some_points(count)
    masks, predicted = ours(sam, embedding * scale, points)
    exact = official(sam, embedding * scale, points, torch.float64)
    rounded = official(sam, embedding * scale, points)
    for mine, theirs, true in zip((masks, predicted), rounded, exact, strict=True):
        assert mine.shape == theirs.shape
        error, official_error = ((x - true).square().mean().sqrt() for x in (mine, theirs))
        assert error <= 2 * official_error + 1e-7


def test_only_the_wanted_part_is_drawn(sam: Sam, embedding: Tensor) -> None:
    points = some_points(4)
    whole, _ = ours(sam, embedding, points)
    for rows, columns in ((SIDE, 5), (9, SIDE), (1, 1), (7, 3)):
        part, _ = ours(sam, embedding, points, (rows, columns), prompts=slice(1, 3))
        height, width = LOGITS_PER_TOKEN * rows, LOGITS_PER_TOKEN * columns
        assert part.shape == (2, 3, height, width)
        assert torch.allclose(part, whole[1:3, :, :height, :width], rtol=1e-4, atol=1e-3)


def test_a_prompt_is_decoded_alike_in_any_company(sam: Sam, embedding: Tensor) -> None:
    points = some_points(5)
    together, predicted = ours(sam, embedding, points)
    for row in range(len(points)):
        alone, its_own = ours(sam, embedding, points[row : row + 1])
        assert torch.allclose(alone[0], together[row], rtol=1e-4, atol=1e-3)
        assert torch.allclose(its_own[0], predicted[row], atol=1e-5)


def test_products_at_once_are_those_one_by_one(
    sam: Sam, embedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = some_points(4)
    one_by_one, predicted = ours(sam, embedding, points)
    monkeypatch.setattr(products, "_one_by_one", lambda matrix: False)
    at_once, same = ours(sam, embedding, points)
    assert torch.allclose(at_once, one_by_one, rtol=1e-4, atol=1e-3)
    assert torch.allclose(same, predicted, atol=1e-5)


def test_memory_does_not_grow_with_the_prompts_decoded(sam: Sam, embedding: Tensor) -> None:
    decoder = Decoder(sam)
    image = decoder.image(embedding)
    first = decoder(image, some_points(4)).tokens.coefficients
    second = decoder(image, some_points(4, seed=3)).tokens.coefficients
    assert second.data_ptr() == first.data_ptr()


def test_the_model_is_left_alone(sam: Sam, embedding: Tensor) -> None:
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    ours(sam, embedding, some_points(2))
    assert all(torch.equal(value, before[key]) for key, value in sam.state_dict().items())
    image = Decoder(sam).image(embedding)
    tensors = (getattr(image, field.name) for field in fields(image))
    assert not any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors)


def test_a_decoder_of_another_depth_is_refused() -> None:
    sam = random_sam(0)
    sam.mask_decoder.transformer = TwoWayTransformer(
        depth=3, embedding_dim=64, num_heads=4, mlp_dim=64
    )
    with pytest.raises(UsageError, match="two layers, got 3"):
        Decoder(sam)
