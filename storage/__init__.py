"""The mask store: needs numpy, Pillow and zarr only, and knows nothing of SAM or training."""

from samprior.storage.masks import MaskSet

__all__ = ["MaskSet"]
