"""The mask store: needs numpy and numcodecs only, and knows nothing of SAM or training."""

from samprior.storage.masks import MaskSet
from samprior.storage.store import MaskStore
from samprior.storage.writer import Record

__all__ = ["MaskSet", "MaskStore", "Record"]
