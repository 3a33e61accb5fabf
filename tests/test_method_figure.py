"""The figure of docs/method.md: it is up to date, and it shows the stages that `train` has."""

import re
from collections.abc import Callable
from types import ModuleType
from xml.etree import ElementTree

import pytest

from samprior.training.config import TrainConfig
from samprior.training.stages import STAGES_OF_MODE

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def script(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    return docs_script("method_figure")


def test_the_figure_is_up_to_date(script: ModuleType) -> None:
    """If not: python docs/method_figure.py."""
    assert script.figure() == script.FIGURE.read_text("utf-8")


def test_it_shows_the_stages_of_the_default_mode(script: ModuleType) -> None:
    stages = ElementTree.fromstring(script.figure()).iterfind(f".//{SVG}tspan[@class='stage']")
    mode = TrainConfig.model_fields["mode"].default
    assert tuple(stage.text for stage in stages) == STAGES_OF_MODE[mode]


def test_its_references_lead_somewhere(script: ModuleType) -> None:
    made = script.figure()
    defined = set(re.findall(r' id="([^"]+)"', made))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', made)) == defined


def test_nothing_is_drawn_off_the_card(script: ModuleType) -> None:
    width, height = script.SIZE
    for place in ElementTree.fromstring(script.figure()).iter():
        if place.tag in (f"{SVG}rect", f"{SVG}use", f"{SVG}text"):
            at = {key: float(place.get(key, 0)) for key in ("x", "y", "width", "height")}
            assert 0 <= at["x"] <= at["x"] + at["width"] <= width
            assert 0 <= at["y"] <= at["y"] + at["height"] <= height
