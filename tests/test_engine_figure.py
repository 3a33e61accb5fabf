"""The figure of docs/engine.md: it runs, it is up to date, and what it says of its mask is true."""

import base64
import io
import re
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
import torch.nn.functional as F
from PIL import Image
from segment_anything.modeling import Sam
from segment_anything.utils.amg import calculate_stability_score

PIXELS = re.compile(r'data:image/png;base64,([^"]+)')


@pytest.fixture(scope="module")
def script(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    return docs_script("engine_figure")


@pytest.fixture(scope="module")
def cup(script: ModuleType) -> Any:  # noqa: ANN401  # a class of the script
    return script.segment_cup()


def test_the_figure_is_up_to_date(script: ModuleType, cup: Any) -> None:  # noqa: ANN401
    """If not: python docs/engine_figure.py. PNG files may be packed otherwise by other versions."""
    made, kept = script.figure(cup), script.FIGURE.read_text("utf-8")
    assert PIXELS.sub("", made) == PIXELS.sub("", kept)
    for ours, theirs in zip(pixels(made), pixels(kept), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_it_is_drawn_alike_each_time(script: ModuleType, cup: Any) -> None:  # noqa: ANN401
    assert script.figure(cup) == script.figure(script.segment_cup())


def test_its_mask_is_the_official_one(script: ModuleType, cup: Any) -> None:  # noqa: ANN401
    height, width = cup.logits.shape
    # The rows that the engine leaves out are padding; what they hold does not matter.
    square = F.pad(cup.logits, (0, script.LOW_RES - width, 0, script.LOW_RES - height))
    model = SimpleNamespace(image_encoder=SimpleNamespace(img_size=script.INPUT_SIDE))
    values = Sam.postprocess_masks(
        model, square[None, None], cup.resampling.input_size, cup.resampling.size
    )[0]
    official = (values > 0).numpy()[0]
    assert np.array_equal(cup.plane, official)
    assert int(cup.scores.areas[0]) == np.count_nonzero(official)
    assert float(cup.scores.stability[0]) == float(calculate_stability_score(values, 0.0, 1.0)[0])
    assert official[cup.by_pixel == 3].all()
    assert not official[cup.by_pixel == 0].any()


def test_the_figure_is_small_and_well_formed(script: ModuleType) -> None:
    assert script.FIGURE.stat().st_size < 300_000
    ElementTree.parse(script.FIGURE)


def pixels(svg: str) -> list[npt.NDArray[np.uint8]]:
    """The embedded pictures, (h, w, 3) each."""
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
        for encoded in PIXELS.findall(svg)
    ]
