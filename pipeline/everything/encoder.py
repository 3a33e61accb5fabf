"""SAM's image encoder with less work and memory, from the weights of the official module.

`Encoder` computes what `ImageEncoderViT` computes, up to rounding: it reads the same parameters,
copies none of them in float32, and never changes the module. `encode_batches` runs it over many
images and goes on with smaller batches when the memory does not suffice.

B images, S pixels of a side, H x W tokens of an image, C channels, G heads, D channels of a head.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling.image_encoder import Block, get_rel_pos
from torch import Tensor, nn

from samprior.pipeline.everything.attention import RelativePositions, Window, attend, on_cpu
from samprior.pipeline.everything.linear import linear
from samprior.pipeline.shortages import is_out_of_memory
from samprior.storage.choices import check_choice
from samprior.storage.errors import ImageError, UsageError

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Number formats that an encoder can compute in."""

TOKENS_AT_ONCE_ON_CPU = 1024
"""Tokens that go through an MLP at a time, whose hidden layer is four times as wide as they are:
12 MiB for ViT-B instead of 48. Four times as many are no faster."""

TOKENS_AT_ONCE_ON_GPU = 16384
"""The same for GPUs, which need more of them to be busy."""


@dataclass(frozen=True, kw_only=True)
class EncoderBlock:
    """One transformer block: references to the official modules, matrices in the dtype asked."""

    norm1: nn.Module
    qkv: tuple[Tensor, Tensor | None]
    """Weight (3C, C) and bias (3C,)."""

    window: Window
    proj: tuple[Tensor, Tensor | None]
    norm2: nn.Module
    lin1: tuple[Tensor, Tensor | None]
    act: nn.Module
    lin2: tuple[Tensor, Tensor | None]


class Encoder:
    """The image encoder of `sam`, as a function of preprocessed images.

    The weights are read at construction; float32 shares them with `sam`, other precisions keep
    a copy of the large matrices. In these, matrix products and attention are computed in 16
    bits, while the sum that runs through the blocks, the norms, and the first and last layers
    (one percent of the work) stay float32.

    Args:
        sam: a model of the official class, float32.
        precision: one of PRECISIONS.
        compile: fuse the small steps with torch.compile. The first call of each batch size
            compiles, for up to minutes; `warm_up` does so beforehand. Needs a C++ compiler.

    Raises:
        UsageError: an unknown precision, or float16 on a CPU.
    """

    def __init__(self, sam: Sam, *, precision: str = "float32", compile: bool = False) -> None:
        check_choice("encoder precision", precision, PRECISIONS)
        if precision == "float16" and sam.device.type == "cpu":
            raise UsageError("float16 is for GPUs; on a CPU use bfloat16 or float32")
        self._module: ImageEncoderViT = sam.image_encoder
        self._device: torch.device = sam.device
        self._compiled = compile
        self._precision = precision
        dtype = PRECISIONS[precision]
        with torch.no_grad():
            self._blocks = [
                _read_block(block, self._module, dtype) for block in self._module.blocks
            ]
        self._project_qkv = torch.compile(project_qkv) if compile else project_qkv
        self._mlp = torch.compile(mlp) if compile else mlp
        # On a CPU the attention is a loop of large products: nothing to fuse, much to unroll.
        fuse = compile and self._device.type != "cpu"
        self._attend = torch.compile(attend) if fuse else attend

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Embeddings (B, C, H, W) float32 of `inputs` (B, 3, S, S) float32 on the model's device.

        S is the side the model is made for, `sam.image_encoder.img_size`.
        """
        side = self._module.img_size
        assert inputs.shape[1:] == (3, side, side), inputs.shape
        x = self._module.patch_embed(inputs)  # (B, H, W, C)
        if self._module.pos_embed is not None:
            x = x + self._module.pos_embed
        # The convolution left the channels apart; the blocks want them side by side.
        x = x.contiguous()
        for block in self._blocks:
            self._run_block(x, block)
        # Channels apart again: with them side by side oneDNN's 3x3 convolution has twice the error.
        embeddings: Tensor = self._module.neck(x.permute(0, 3, 1, 2).contiguous())
        # Comparisons with NaN are false: such an embedding would pass for a picture without masks.
        if self._precision != "float32" and not bool(embeddings.isfinite().all()):
            raise ImageError(
                f"the encoder overflowed in {self._precision}; use --precision bfloat16 or float32"
            )
        return embeddings

    def warm_up(self, batch_size: "BatchSize") -> None:
        """Compile with a batch of empty images, fewer if they don't fit; nothing without `compile`.

        Other sizes of batches compile once more, for all sizes.
        """
        if self._compiled:
            side = self._module.img_size
            empty = torch.zeros(1, 3, side, side, device=self._device)
            for _ in encode_batches(self, [empty] * batch_size.current, batch_size=batch_size):
                pass

    def _run_block(self, x: Tensor, block: EncoderBlock) -> None:
        """Change the tokens x (B, H, W, C) float32 in place into those behind the block."""
        attended = self._attend(self._project_qkv(x, block), block.window)
        x.add_(linear(attended, *block.proj))
        del attended
        rows = x.flatten(0, 1)  # (BH, W, C), a view
        tokens = TOKENS_AT_ONCE_ON_CPU if on_cpu(x) else TOKENS_AT_ONCE_ON_GPU
        rows_at_once = max(1, tokens // x.shape[2])
        for part in torch.split(rows, rows_at_once):
            part.add_(self._mlp(part[None], block)[0])


def project_qkv(x: Tensor, block: EncoderBlock) -> Tensor:
    """Queries, keys and values (B, H, W, 3, G, D) of the tokens x (B, H, W, C)."""
    weight, bias = block.qkv
    qkv = linear(block.norm1(x).to(weight.dtype), weight, bias)
    return qkv.reshape(*x.shape[:3], *block.window.padding.shape)


def mlp(x: Tensor, block: EncoderBlock) -> Tensor:
    """What the MLP adds to the tokens x (B, H, W, C)."""
    hidden = linear(block.norm2(x).to(block.lin1[0].dtype), *block.lin1)
    return linear(block.act(hidden), *block.lin2)


def _read_block(block: Block, module: ImageEncoderViT, dtype: torch.dtype) -> EncoderBlock:
    def matrix(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        return layer.weight.detach().to(dtype), bias

    return EncoderBlock(
        norm1=block.norm1,
        qkv=matrix(block.attn.qkv),
        window=_read_window(block, module, dtype),
        proj=matrix(block.attn.proj),
        norm2=block.norm2,
        lin1=matrix(block.mlp.lin1),
        act=block.mlp.act,
        lin2=matrix(block.mlp.lin2),
    )


def _read_window(block: Block, module: ImageEncoderViT, dtype: torch.dtype) -> Window:
    side = block.window_size or module.img_size // module.patch_embed.proj.stride[0]
    attention = block.attn
    width = attention.qkv.out_features
    bias = attention.qkv.bias
    padding = attention.qkv.weight.new_zeros(width) if bias is None else bias.detach()
    positions = None
    if attention.use_rel_pos:
        positions = RelativePositions(
            rows=get_rel_pos(side, side, attention.rel_pos_h.detach()).to(dtype),
            columns=get_rel_pos(side, side, attention.rel_pos_w.detach()).to(dtype),
        )
    return Window(
        shape=(side, side),
        padding=padding.to(dtype).view(3, attention.num_heads, -1),
        positions=positions,
    )


@dataclass(kw_only=True)
class BatchSize:
    """How many images are encoded at a time, and what became of that number.

    Raises:
        UsageError: less than one image.
    """

    current: int
    """Images per batch from now on."""

    notes: list[str] = field(default_factory=list)
    """One line for each time it had to be lowered."""

    def __post_init__(self) -> None:
        if self.current < 1:
            raise UsageError(f"the encoder's batch must hold at least 1 image, got {self.current}")

    def halve(self, tried: int) -> None:
        """Go on with half of the `tried` images, and note it."""
        self.current = tried // 2
        self.notes.append(f"encoder batch halved to {self.current}: out of memory")


def encode_batches(
    encoder: Callable[[Tensor], Tensor], inputs: Iterable[Tensor], *, batch_size: BatchSize
) -> Iterator[Tensor]:
    """Embeddings (1, C, H, W) of `inputs`, each (1, 3, S, S), in their order.

    No more inputs are taken than make a batch.

    Where a batch does not fit into memory, `batch_size` is halved, and the same images are tried
    again. It stays so: use one BatchSize for all calls, and read its notes when done.

    Raises:
        torch.OutOfMemoryError, MemoryError, RuntimeError: one image alone does not fit; the
            error is the encoder's own.
    """
    coming = iter(inputs)
    waiting: list[Tensor] = []
    while True:
        waiting += islice(coming, max(0, batch_size.current - len(waiting)))
        if not waiting:
            return
        batch = waiting[: batch_size.current]
        embeddings = _encode(encoder, batch)
        if embeddings is None:
            batch_size.halve(len(batch))
            # The failed attempt left blocks of its own sizes, too small for the next one.
            torch.cuda.empty_cache()
            continue
        del waiting[: len(embeddings)]
        yield from torch.split(embeddings, 1)


def _encode(encoder: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Tensor | None:
    """Embeddings (B, C, H, W), or None if several images need more memory than there is.

    None instead of an error, whose traceback would keep all tensors of the attempt alive.
    """
    try:
        return encoder(torch.cat(list(inputs)))
    except (RuntimeError, MemoryError) as error:
        if len(inputs) == 1 or not is_out_of_memory(error):
            raise
        return None
