"""The official SamAutomaticMaskGenerator as a `Segmenter`: the reference for every other engine."""

import numpy as np
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import MaskData, rle_to_mask

from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.everything.crops import plan_crops
from samprior.storage import MaskSet
from samprior.storage.errors import UsageError
from samprior.storage.images import Rgb


class OfficialEngine:
    """Masks of the official generator, in its order, with its scores.

    Columns: `predicted_iou` and `stability` float32 (K,), `point` float32 (K, 2), the prompt's
    (x, y) in pixels. A mask without a pixel above minus the stability offset has stability NaN;
    the default thresholds drop it.
    """

    def __init__(self, sam: Sam, amg: AmgSettings) -> None:
        self._amg = amg
        # Run lengths, unpacked one by one below: "binary_mask" would hold all planes in a list
        # beside the array made of them, twice the memory.
        self._generator = _Generator(
            sam,
            points_per_side=amg.points_per_side,
            points_per_batch=amg.points_per_batch,
            pred_iou_thresh=amg.pred_iou_thresh,
            stability_score_thresh=amg.stability_score_thresh,
            stability_score_offset=amg.stability_score_offset,
            box_nms_thresh=amg.box_nms_thresh,
            crop_n_layers=amg.crop_n_layers,
            crop_nms_thresh=amg.crop_nms_thresh,
            crop_overlap_ratio=amg.crop_overlap_ratio,
            crop_n_points_downscale_factor=amg.crop_n_points_downscale_factor,
            point_grids=amg.grid_arrays(),
            min_mask_region_area=amg.min_mask_region_area,
            output_mode="uncompressed_rle",
        )

    def __call__(self, image: Rgb) -> MaskSet:
        """Masks of uint8 (H, W, 3); none at all is a valid result.

        Raises:
            UsageError: an array of another type or shape.
            ImageError: the image, or a crop of it, is too thin to be scaled to SAM's input.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UsageError(f"wanted an image uint8 (H, W, 3), got {image.dtype} {image.shape}")
        height, width = image.shape[:2]
        side = self._generator.predictor.transform.target_length
        plan_crops((height, width), self._amg, input_side=side)  # refuses what is too thin
        records = self._generator.generate(image)
        planes = np.empty((len(records), height, width), np.bool_)
        for plane, record in zip(planes, records, strict=True):
            plane[:] = rle_to_mask(record["segmentation"])
        points = [record["point_coords"][0] for record in records]
        return MaskSet.from_masks(
            planes,
            predicted_iou=np.array([record["predicted_iou"] for record in records], np.float32),
            stability=np.array([record["stability_score"] for record in records], np.float32),
            point=np.array(points, np.float32).reshape(-1, 2),
        )


class _Generator(SamAutomaticMaskGenerator):  # type: ignore[misc]
    """The official generator, but a crop without masks does not end in an IndexError."""

    def _process_crop(self, *args: object) -> MaskData:
        data = super()._process_crop(*args)
        # The original makes crop_boxes of shape (0,) for no masks, which box_area can't index.
        data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)
        return data
