"""Errors that tell of the machine, and say nothing against the image at hand."""

_MEMORY = (
    "DefaultCPUAllocator",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute",
)
"""What PyTorch's plain RuntimeErrors say when memory ran out: its own allocator, cuBLAS, cuDNN."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the CPU or of a GPU."""
    # torch's class by name, since most segmenters never import torch.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY)


def is_of_the_gpu(error: BaseException) -> bool:
    """Whether a GPU failed, after which every call in this process fails."""
    if type(error).__name__ == "AcceleratorError":
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")
