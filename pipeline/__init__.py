"""From a dataset folder to a mask store: datasets, segmenters, the job that runs them."""

from samprior.pipeline.datasets import Dataset, Pair, find_dataset
from samprior.pipeline.segmenters import Segmenter, build_segmenter

__all__ = ["Dataset", "Pair", "Segmenter", "build_segmenter", "find_dataset"]
