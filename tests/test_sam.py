"""SAM: weights without code, the official generator's masks bit for bit, settings that are told."""

import itertools
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam

from samprior.pipeline import sam_segmenter
from samprior.pipeline.amg_settings import AmgSettings
from samprior.pipeline.sam import load_sam, random_sam
from samprior.pipeline.segmenters import build_segmenter, segmenter_settings
from samprior.storage.errors import CheckpointError, ImageError, UsageError
from samprior.storage.images import Rgb

LOOSE = {"points_per_side": 6, "pred_iou_thresh": 0.5, "stability_score_thresh": 0.3}


@pytest.fixture(scope="module")
def sam() -> Sam:
    return random_sam(0)


@pytest.fixture(scope="module")
def image() -> Rgb:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 9, 3)).astype(np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)[:90, :130]


def official_state(model: str) -> dict[str, torch.Tensor]:
    """The official keys and shapes with one stored number each: ViT-H in a few hundred KiB."""
    with torch.device("meta"):
        state = sam_model_registry[model](checkpoint=None).state_dict()
    return {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}


@pytest.fixture
def small_vit_b(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let vit_b be an architecture that tests can write to disk."""
    from samprior.pipeline.sam import _small_sam

    monkeypatch.setitem(sam_model_registry, "vit_b", lambda checkpoint: _small_sam(256))


@pytest.mark.parametrize(
    "settings",
    [
        LOOSE,
        LOOSE | {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
        LOOSE | {"box_nms_thresh": 1.5, "stability_score_thresh": 0.0},
        {
            "points_per_side": None,
            "point_grids": [[[0.5, 0.5], [0.2, 0.7]]],
            "pred_iou_thresh": 0.0,
            "stability_score_thresh": 0.0,
        },
        LOOSE | {"pred_iou_thresh": 99.0},
    ],
    ids=["grid", "crops", "no-nms", "own-points", "none"],
)
def test_masks_are_those_of_the_official_generator(
    sam: Sam, image: Rgb, settings: dict[str, object]
) -> None:
    masks = build_segmenter("sam", model=sam, engine="official", **settings)(image)
    if settings.get("point_grids"):
        grids = [np.array(grid) for grid in settings["point_grids"]]  # type: ignore[attr-defined]
        settings = settings | {"point_grids": grids}
    records = SamAutomaticMaskGenerator(sam, **settings).generate(image)
    assert (len(records) == 0) == (settings["pred_iou_thresh"] == 99.0)
    assert len(masks) == len(records)
    assert masks.shape == image.shape[:2]
    for k, record in enumerate(records):
        assert np.array_equal(masks.mask(k), record["segmentation"])
        assert masks.areas[k] == record["area"]
        assert masks.columns["predicted_iou"][k] == record["predicted_iou"]
        score = masks.columns["stability"][k]
        assert np.array_equal(score, np.float32(record["stability_score"]), equal_nan=True)
        assert masks.columns["point"][k].tolist() == pytest.approx(record["point_coords"][0])
    dtypes = {name: column.dtype for name, column in masks.columns.items()}
    assert dtypes == dict.fromkeys(("predicted_iou", "stability", "point"), np.float32)


def test_no_masks_in_some_or_all_crops_is_a_valid_set(sam: Sam, image: Rgb) -> None:
    crops = {"points_per_side": 2, "crop_n_layers": 1}
    empty = build_segmenter("sam", model=sam, pred_iou_thresh=99.0, **crops)(image)
    assert len(empty) == 0
    assert empty.shape == image.shape[:2]
    assert empty.columns["point"].shape == (0, 2)
    with pytest.raises(IndexError):  # what the official generator makes of it
        SamAutomaticMaskGenerator(sam, pred_iou_thresh=99.0, **crops).generate(image)
    some = build_segmenter("sam", model=sam, pred_iou_thresh=0.9, stability_score_thresh=0, **crops)
    assert len(some(image)) > 0


@pytest.mark.parametrize("shape", [(2000, 1), (1, 2000)])
def test_images_too_thin_for_sam_are_told(sam: Sam, shape: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="too thin"):
        build_segmenter("sam", model=sam, **LOOSE)(np.zeros((*shape, 3), np.uint8))
    with pytest.raises(ImageError, match="too thin"):
        build_segmenter("sam", model=sam, crop_n_layers=1)(np.zeros((4, 1, 3), np.uint8))


def test_other_arrays_are_refused(sam: Sam) -> None:
    segment = build_segmenter("sam", model=sam)
    wrong: np.ndarray
    for wrong in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)):
        with pytest.raises(UsageError, match=r"uint8 \(H, W, 3\)"):
            segment(wrong)


def test_random_sam_depends_on_its_seed_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = random_sam(1), random_sam(1), random_sam(2)
    assert torch.equal(torch.rand(3), wanted)
    first, second, third = (model.state_dict() for model in (one, same, other))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_random_sam_has_masks_on_both_sides_of_the_thresholds(sam: Sam, image: Rgb) -> None:
    keep_all = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 2.0}
    masks = build_segmenter("sam", model=sam, points_per_side=6, **keep_all)(image)
    iou, stability = (np.asarray(masks.columns[c], float) for c in ("predicted_iou", "stability"))
    assert 0.1 < float((iou > 0.88).mean()) < 0.9
    assert float(np.nanmax(stability)) > 0.9 > 0.5 > float(np.nanmin(stability))
    share = masks.areas / masks.atoms.size
    assert float(((share > 0.02) & (share < 0.9)).mean()) > 0.05
    with pytest.raises(UsageError, match="multiple of 16"):
        random_sam(image_size_px=250)


def test_weights_are_loaded_as_they_were_saved(
    sam: Sam, image: Rgb, small_vit_b: None, tmp_path: Path
) -> None:
    path = tmp_path / "small.pth"
    torch.save(sam.state_dict(), path)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    loaded = load_sam("vit_b", checkpoint=path)
    assert torch.equal(torch.rand(3), wanted)
    assert not loaded.training
    kept, read = sam.state_dict(), loaded.state_dict()
    assert kept.keys() == read.keys()
    assert all(torch.equal(kept[key], read[key]) for key in kept)
    assert torch.equal(loaded.pixel_mean, sam.pixel_mean)
    assert torch.equal(loaded.pixel_std, sam.pixel_std)
    by_name = build_segmenter("sam", model="vit_b", checkpoint=path, device="cpu", **LOOSE)
    assert by_name(image).equals(build_segmenter("sam", model=sam, **LOOSE)(image))


def test_the_real_architecture_loads_without_a_leftover(tmp_path: Path) -> None:
    path = tmp_path / "vit_b.pth"
    torch.save(official_state("vit_b"), path)
    loaded = load_sam("vit_b", checkpoint=path)
    official = sam_model_registry["vit_b"](checkpoint=None)
    for (name, ours), (same, theirs) in zip(
        itertools.chain(loaded.named_parameters(), loaded.named_buffers()),
        itertools.chain(official.named_parameters(), official.named_buffers()),
        strict=True,
    ):
        assert (name, ours.shape, ours.device.type) == (same, theirs.shape, "cpu")
    assert torch.equal(loaded.pixel_mean, official.pixel_mean)
    assert torch.equal(loaded.pixel_std, official.pixel_std)


class Evil:
    """A pickle that makes a folder when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_never_runs(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"image_encoder.pos_embed": Evil(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        load_sam("vit_b", checkpoint=path)
    assert "\n" not in str(caught.value)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError):
        load_sam("vit_b", checkpoint=path)
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_cut_off_checkpoints_are_told(tmp_path: Path, sam: Sam, share: float) -> None:
    for legacy in (False, True):
        path = tmp_path / "cut.pth"
        torch.save(sam.state_dict(), path, _use_new_zipfile_serialization=not legacy)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
            load_sam("vit_b", checkpoint=path)
        assert "\n" not in str(caught.value)


def test_checkpoints_of_another_model_name_it(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    for model, asked in (("vit_h", "vit_b"), ("vit_l", "vit_h"), ("vit_b", "vit_l")):
        torch.save(official_state(model), path)
        with pytest.raises(CheckpointError, match=f"is of {model}, not {asked}"):
            load_sam(asked, checkpoint=path)


def test_checkpoints_of_something_else_show_where_they_differ(tmp_path: Path, sam: Sam) -> None:
    path = tmp_path / "some.pth"
    right = official_state("vit_b")
    key = "mask_decoder.iou_token.weight"
    lacking = {name: value for name, value in right.items() if name != key}
    cases = {
        f"1 keys missing, 0 unknown.*{key} is missing": lacking,
        "0 keys missing, 1 unknown.*head.bias is not known": right | {"head.bias": torch.zeros(1)},
        f"{key} has shape .2, 3., wanted .1, 256.": right | {key: torch.zeros(2, 3)},
        "does not fit vit_b": dict(sam.state_dict()),
        "holds dict at 'model'": {"model": right},
        "holds Tensor at": {key: torch.zeros(1, 256, device="meta")},
        "holds Tensor at .a": {"a": torch.zeros(3, dtype=torch.int64)},
        "no dict of tensors": [torch.zeros(1)],
    }
    for message, content in cases.items():
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_sam("vit_b", checkpoint=path)
        assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match="not there"):
        load_sam("vit_b", checkpoint=tmp_path / "none.pth")
    with pytest.raises(UsageError, match="vit_h, vit_l, vit_b"):
        load_sam("vit_x", checkpoint=path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"points_per_sid": 3}, "did you mean 'points_per_side'"),
        ({"modell": "vit_b"}, "did you mean 'model'"),
        ({"model": "vit_x"}, "vit_h, vit_l, vit_b"),
        ({"engine": "quick"}, "Known: fast, official"),
        ({"precision": "int8"}, "Known: float32"),
        ({"images_at_once": 0}, "images_at_once"),
        ({"compile": "no"}, "compile must be true or false, got 'no'"),
        ({"engine": "official", "precision": "bfloat16"}, "precision is a setting of engine=fast"),
        ({"engine": "official", "compile": True}, "compile is a setting of engine=fast"),
        ({"points_per_side": 0}, "points_per_side"),
        ({"points_per_side": True}, "points_per_side"),
        ({"points_per_batch": 1.5}, "points_per_batch"),
        ({"points_per_side": None}, "either points_per_side or point_grids"),
        ({"point_grids": [[[0.5, 0.5]]]}, "either points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [[[2, 0]]]}, "outside 0 to 1"),
        ({"points_per_side": None, "point_grids": [[1, 0]]}, r"\(N, 2\)"),
        ({"points_per_side": None, "point_grids": 5}, "point_grids must be a list"),
        ({"points_per_side": None, "point_grids": "grid"}, "point_grids must be a list"),
        ({"points_per_side": None, "point_grids": [], "crop_n_layers": 0}, "1 grids"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh"),
        ({"stability_score_offset": -1.0}, "stability_score_offset"),
        ({"crop_overlap_ratio": 1.0}, "below 1"),
        ({"crop_n_layers": 3, "crop_n_points_downscale_factor": 4}, "leaves no point"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_wrong_settings_are_told(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_segmenter("sam", **setting)


def test_a_module_takes_no_checkpoint(sam: Sam) -> None:
    with pytest.raises(UsageError, match="checkpoint and device go with a model's name"):
        segmenter_settings("sam", model=sam, checkpoint=Path("x.pth"))


def test_small_regions_need_opencv_with_the_official_engine_only(
    sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs OpenCV"):
        segmenter_settings("sam", engine="official", min_mask_region_area=10)
    segmenter_settings("sam", engine="fast", min_mask_region_area=10)


def test_defaults_are_those_of_the_library(sam: Sam) -> None:
    ours = AmgSettings()
    official = SamAutomaticMaskGenerator(sam)
    for name, value in vars(official).items():
        if hasattr(ours, name) and name != "point_grids":
            assert getattr(ours, name) == value, name
    assert len(official.point_grids[0]) == (ours.points_per_side or 0) ** 2


def test_description_is_json_and_tells_masks_apart(sam: Sam, tmp_path: Path) -> None:
    one, other = tmp_path / "one.pth", tmp_path / "other.pth"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    variants: list[dict[str, object]] = [
        {"checkpoint": one},
        {"checkpoint": other},
        {"checkpoint": one, "model": "vit_b"},
        {"checkpoint": one, "pred_iou_thresh": 0.5},
        {"checkpoint": one, "points_per_side": None, "point_grids": [[[0.5, 0.5]]]},
        {"model": sam},
        {"model": random_sam(1)},
    ]
    described = [segmenter_settings("sam", **variant).describe() for variant in variants]
    for first, second in itertools.combinations(described, 2):
        assert first != second
    assert json.loads(json.dumps(described)) == described
    same = segmenter_settings("sam", checkpoint=one, device="cpu", points_per_batch=7)
    assert same.describe() == described[0]
    assert pickle.loads(pickle.dumps(same)) == same
    assert segmenter_settings("sam", model=random_sam(0)).describe() == described[5]


def test_without_a_checkpoint_the_official_one_is_fetched(
    sam: Sam, small_vit_b: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fetched.pth"
    torch.save(sam.state_dict(), path)
    monkeypatch.setattr(sam_segmenter, "fetch_checkpoint", {"vit_b": path}.__getitem__)
    settings = segmenter_settings("sam", model="vit_b", device="cpu")
    assert "checkpoint_sha256" in settings.describe()
    settings.build()
