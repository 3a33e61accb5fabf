"""What the two sides of benchmarks/everything.py give: compared, and written to disk."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from sides import Bench

from samprior.storage import MaskSet, Record
from samprior.storage.images import Rgb
from samprior.storage.manifest import Header, write_header
from samprior.storage.writer import write_shard


def compare_masks(bench: Bench) -> dict[str, Any]:
    """Masks of both sides from the same decoder outputs: how many there are, how many differ.

    Masks are compared in the order they come, and are the same if they differ in less than one
    thousandth of the picture's pixels. A pixel differs if it is in one side's mask only.
    """
    assert bench.scene is not None
    official = bench.official()
    process_batch, stable = official._process_batch, []

    def counted(*batch: object) -> object:
        data = process_batch(*batch)
        stable.append(len(data["rles"]))
        return data

    official._process_batch = counted
    theirs = [record["segmentation"] for record in official.generate(bench.photo)]
    ours = bench.samprior()(bench.photo)
    same_number = len(ours) == len(theirs)
    different = [int((ours.mask(k) != plane).sum()) for k, plane in enumerate(theirs[: len(ours)])]
    return {
        "candidates": bench.scene.predicted_iou.numel(),
        "above_predicted_iou": int((bench.scene.predicted_iou > bench.amg.pred_iou_thresh).sum()),
        "and_stable": sum(stable),
        "kept_by_official": len(theirs),
        "kept_by_samprior": len(ours),
        "same_masks_in_order": same_number and max(different, default=0) < ours.atoms.size // 1000,
        "pixels_compared": ours.atoms.size * len(different),
        "pixels_different": sum(different),
    }


def agreement(bench: Bench, settings: dict[str, Any]) -> dict[str, Any]:
    """Masks of an engine with these settings against those in float32: each one's best match."""
    exact = bench.samprior()(bench.photo)
    other = bench.samprior(**settings)(bench.photo)
    told = {**settings, "masks_in_float32": len(exact), "masks": len(other)}
    if not len(exact):
        return told
    best = _ious(exact, other).max(axis=1, initial=0)  # (K,)
    return {
        **told,
        "share_above_iou_0.9": float((best > 0.9).mean()),
        "mean_iou": float(best.mean()),
    }


def write_masks(folder: Path, photos: Iterable[Rgb], sets: Iterable[MaskSet]) -> None:
    """A store of one shard, with the pictures, as `precompute` writes it."""
    records = [
        Record(str(number), photo, photo, masks)
        for number, (photo, masks) in enumerate(zip(photos, sets, strict=True))
    ]
    count = len(records)
    header = Header(
        num_images=count, num_shards=1, images_per_shard=count, paired=False, made_of={}
    )
    write_header(folder, header)
    write_shard(folder, 0, records, paired=False)


def write_json(file: Path, masks: list[dict[str, Any]]) -> None:
    """One picture's masks as SA-1B keeps them."""
    file.write_text(json.dumps(masks))


def _ious(a: MaskSet, b: MaskSet) -> np.ndarray:
    """(K of a, K of b), from the pixels that atoms of one share with atoms of the other."""
    places = (a.atoms.ravel().astype(int), b.atoms.ravel().astype(int))
    shape = (len(a.members), len(b.members))
    shared = coo_array((np.ones(a.atoms.size), places), shape=shape).tocsr()
    both = a.members.T.astype(float) @ (shared @ b.members.astype(float))
    return both / np.maximum(a.areas[:, None] + b.areas - both, 1)
