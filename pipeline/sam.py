"""SAM models of the official classes: read from a checkpoint without running its code, or random.

A checkpoint is a pickle, and a pickle can run anything; `load_sam` lets torch read tensors only.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

from samprior.storage.choices import check_choice
from samprior.storage.errors import CheckpointError, UsageError
from samprior.storage.weights import check_weights_file

PIXEL_MEAN = (123.675, 116.28, 103.53)
"""Mean of R, G, B on the 0-255 scale, as in the official build_sam.py."""

PIXEL_STD = (58.395, 57.12, 57.375)
"""Standard deviation of R, G, B on the 0-255 scale, as in the official build_sam.py."""

SHAPES = {(1280, 32): "vit_h", (1024, 24): "vit_l", (768, 12): "vit_b"}
"""Width and number of blocks of the image encoder of each official model."""


def load_sam(model: str = "vit_h", *, checkpoint: Path, device: str = "cpu") -> Sam:
    """Build the official SAM `model` with the weights in `checkpoint`, float32, ready to infer.

    The global random state is left alone.

    Raises:
        UsageError: `model` is none of vit_h, vit_l, vit_b.
        CheckpointError: the file is missing, damaged, holds more than tensors, or its tensors
            are those of something else; one line that names the file.
    """
    check_choice("SAM model", model, SHAPES.values())
    state = _read_state(checkpoint)
    # On the meta device nothing is allocated or drawn: a large model would take its memory twice.
    with torch.device("meta"):
        sam = sam_model_registry[model](checkpoint=None)
    _check_state(state, sam.state_dict(), model, checkpoint)
    sam.load_state_dict({key: value.float() for key, value in state.items()}, assign=True)
    # These two are no part of a checkpoint.
    for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        sam.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
    return sam.to(device).eval()


def pick_device(device: str | None) -> str:
    """`device`, checked, or the best one there is.

    Raises:
        UsageError: torch can't use the device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # A torch without CUDA asserts.
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {device!r} can't be used ({reason}); try cpu") from error
    return device


def random_sam(seed: int = 0, *, model: str | None = None, image_size_px: int | None = None) -> Sam:
    """A SAM with random weights, for tests, timings and dry runs.

    Its masks mean nothing, but they are of all sizes, depend on the prompt, and have scores on
    both sides of the usual thresholds. Same seed, same weights; the global random state is left
    alone.

    Args:
        seed: for the weights.
        model: vit_h, vit_l or vit_b; None: a small one of 0.6 million parameters.
        image_size_px: side of the small one's input, 256 by default; the others take 1024.

    Raises:
        UsageError: an unknown model, or a side that is no positive multiple of 16 or that comes
            with an official model.
    """
    side_px = 256 if image_size_px is None else image_size_px
    if side_px < 16 or side_px % 16:
        raise UsageError(f"image_size_px must be a multiple of 16, got {image_size_px}")
    if model is not None:
        check_choice("SAM model", model, SHAPES.values())
        if image_size_px is not None:
            raise UsageError(f"image_size_px is for the small model; {model} takes 1024")
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators too, which fork_rng doesn't put back.
        torch.default_generator.manual_seed(seed)
        sam = _small_sam(side_px) if model is None else sam_model_registry[model](checkpoint=None)
        sam = sam.eval()
        with torch.no_grad():
            # At full size 64 prompts would take as long as all that a test does with the model.
            _spread_outputs(sam, num_prompts=64 if model is None else 16)
    return sam


def _read_state(checkpoint: Path) -> Mapping[str, torch.Tensor]:
    if not checkpoint.is_file():
        raise CheckpointError(f"checkpoint {checkpoint} is not there; download it or fix the path")
    check_weights_file(checkpoint)
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        # "Other exceptions may also be raised during unpickling" (docs of pickle): any at all.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {checkpoint} is damaged or holds more than tensors ({reason[:120]}); "
            "get the official file"
        ) from error
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"checkpoint {checkpoint} holds no dict of tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise CheckpointError(
                f"checkpoint {checkpoint} holds {type(value).__name__} at {key!r}; wanted the "
                "official state dict, with nothing but tensors of numbers"
            )
    return state


def _is_plain(value: object) -> bool:
    """Whether `value` is a dense floating-point tensor with data."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    return not value.is_meta and not value.is_quantized and value.is_floating_point()


def _check_state(
    state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], model: str, path: Path
) -> None:
    missing = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    other = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if not (missing or extra or other):
        return
    fits = _model_of(state)
    if fits is not None and fits != model:
        raise CheckpointError(f"checkpoint {path} is of {fits}, not {model}; use --model {fits}")
    if other:
        example = (
            f"{other[0]} has shape {tuple(state[other[0]].shape)}, wanted "
            f"{tuple(wanted[other[0]].shape)}"
        )
    elif missing:
        example = f"{missing[0]} is missing"
    else:
        example = f"{extra[0]} is not known"
    raise CheckpointError(
        f"checkpoint {path} does not fit {model}: {len(missing)} keys missing, {len(extra)} "
        f"unknown, {len(other)} of another shape; for example {example}"
    )


def _model_of(state: Mapping[str, torch.Tensor]) -> str | None:
    """The official model whose image encoder has this width and depth, if any."""
    patches = state.get("image_encoder.patch_embed.proj.weight")
    if patches is None or patches.ndim == 0:
        return None
    prefix = "image_encoder.blocks."
    blocks = {key.split(".")[2] for key in state if key.startswith(prefix)}
    return SHAPES.get((len(patches), len(blocks)))


def _small_sam(image_size_px: int) -> Sam:
    patches = image_size_px // 16
    width = 64
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=2,
            embed_dim=width,
            img_size=image_size_px,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=4,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=(1,),
            window_size=14,
            out_chans=width,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(patches, patches),
            input_image_size=(image_size_px, image_size_px),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=width, mlp_dim=2 * width, num_heads=4
            ),
            transformer_dim=width,
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )


def _spread_outputs(sam: Sam, *, num_prompts: int) -> None:
    """Give the last layers a scale and an offset that make masks differ between prompts.

    With default initialisation all prompts give nearly the same mask, of logits near 0. So the
    outputs for some random prompts on a random image are standardised, as in data-dependent
    initialisation: mask coefficients to mean 0, predicted IoU to mean 0.88, its usual threshold.
    """
    decoder = sam.mask_decoder
    sam.image_encoder.pos_embed.normal_(0.0, 0.2)
    for layer in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
        # Nearly the same kernel for all four sub-pixels: blobs rather than salt and pepper.
        mean = layer.weight.mean((2, 3), keepdim=True)
        layer.weight.copy_(4.0 * mean + 0.4 * layer.weight)
    heads = [mlp.layers[-1] for mlp in decoder.output_hypernetworks_mlps]
    iou_head = decoder.iou_prediction_head.layers[-1]
    modules = [*heads, iou_head, decoder.output_upscaling]
    seen = _outputs_of_random_prompts(sam, modules, num_prompts)
    logit_scale = 6.0 / float(seen[decoder.output_upscaling].std())
    for head in heads:
        _standardise(head, seen[head], mean=0.0, std=logit_scale)
    _standardise(iou_head, seen[iou_head], mean=0.88, std=0.2)


def _outputs_of_random_prompts(
    sam: Sam, modules: list[nn.Module], num_prompts: int
) -> dict[nn.Module, torch.Tensor]:
    seen: dict[nn.Module, torch.Tensor] = {}

    def note(module: nn.Module, _: object, output: torch.Tensor) -> None:
        seen[module] = output

    hooks = [module.register_forward_hook(note) for module in modules]
    side = sam.image_encoder.img_size
    image = F.interpolate(torch.rand(1, 3, 8, 8) * 255, (side, side), mode="bicubic")
    points = torch.rand(num_prompts, 1, 2) * side
    sparse, dense = sam.prompt_encoder(
        points=(points, torch.ones(num_prompts, 1)), boxes=None, masks=None
    )
    sam.mask_decoder(
        image_embeddings=sam.image_encoder(sam.preprocess(image)),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    for hook in hooks:
        hook.remove()
    return seen


def _standardise(layer: nn.Linear, outputs: torch.Tensor, *, mean: float, std: float) -> None:
    """Scale and shift a linear layer so that `outputs` (N, F) would have this mean and std."""
    scale = std / outputs.std(0).clamp_min(1e-6)
    layer.weight.mul_(scale[:, None])
    layer.bias.copy_((layer.bias - outputs.mean(0)) * scale + mean)
