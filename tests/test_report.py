"""The report on an evaluation: true numbers, crops where they are said to be, one safe page."""

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from samprior.cli.main import cli
from samprior.storage.errors import UsageError
from samprior.storage.images import write_png
from samprior.training.checkpoint import save_checkpoint
from samprior.training.columns import signed
from samprior.training.comparison import CROP_PX, WHOLE_PX, find_crop
from samprior.training.evaluate import Evaluation, ImageScore, write_evaluation
from samprior.training.metrics import Space, psnr, ssim
from samprior.training.networks import build_network
from samprior.training.report import choose_extremes, psnr_gain, write_report

Rgb = npt.NDArray[np.uint8]
Pair = tuple[str, Path, Path]
MINUS = "\N{MINUS SIGN}"
VOID = {"meta", "img", "input", "br", "link", "hr"}
DISTILLED: dict[str, Any] = {
    "network": {"name": "nafnet", "preset": "tiny", "settings": {}, "init": None},
    "stage": "distill",
    "masks": {
        "dataset": {"name": "rain", "split": "train", "listing_sha256": "0" * 64},
        "segmenter": {"segmenter": "superpixel", "levels": [5, 15]},
        "source": "clean",
    },
    "analyzer": "random-vgg",
}


class Page(HTMLParser):
    """Tags that were opened and closed in order, table rows, headings and visible text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.text = self.script = ""
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h2", "h3"):
            self.headings.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = set(self._open)
        if not {"script", "style"} & where:
            self.text += data
        if "script" in where:
            self.script += data
        if {"td", "th"} & where:
            self.rows[-1][-1] += data
        if {"h2", "h3"} & where:
            self.headings[-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def decoded(uri: str | None) -> Rgb:
    assert uri is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def darkened(picture: Rgb) -> Rgb:
    """A restorer that helps pictures which are 40 too bright, and harms all others."""
    return np.asarray(np.clip(picture.astype(int) - 40, 0, 255), np.uint8)


def scored(pairs: Sequence[Pair], *, space: Space = "rgb", border_px: int = 0) -> Evaluation:
    scores = []
    for key, degraded_file, clean_file in pairs:
        degraded, clean = (np.asarray(Image.open(file)) for file in (degraded_file, clean_file))
        values = [
            measure(picture, clean, space=space, border_px=border_px)
            for measure in (psnr, ssim)
            for picture in (degraded, darkened(degraded))
        ]
        scores.append(ImageScore(key, *values))
    return Evaluation(tuple(scores), space, border_px, None, 32)


def listed(gains: Sequence[float], keys: Sequence[str] | None = None) -> Evaluation:
    """Scores without pictures."""
    names = keys or [f"{place:04d}" for place in range(len(gains))]
    images = [ImageScore(k, 20.0, 20.0 + g, 0.5, 0.6) for k, g in zip(names, gains, strict=True)]
    return Evaluation(tuple(images), "rgb", 0, None, 32)


MakePair = Callable[..., Pair]


@pytest.fixture
def make_pair(tmp_path: Path, rng: np.random.Generator) -> MakePair:
    """Write a pair of which the degraded side is `shift` too bright, or of the given pictures."""

    def make(
        key: str,
        *,
        shift: int = 0,
        shape: tuple[int, int] = (24, 40),
        pictures: tuple[Rgb, Rgb] | None = None,
    ) -> Pair:
        if pictures is None:
            clean = rng.integers(50, 150, (*shape, 3), dtype=np.uint8)
            pictures = (clean + np.uint8(shift), clean)
        number = len(list(tmp_path.glob("*.png")))
        files = (tmp_path / f"{number}d.png", tmp_path / f"{number}c.png")
        for file, picture in zip(files, pictures, strict=True):
            write_png(file, picture)
        return (key, *files)

    return make


def report(
    evaluation: Evaluation,
    pairs: Sequence[Pair],
    out: Path,
    **options: Any,  # noqa: ANN401
) -> tuple[str, Page]:
    chosen: dict[str, Any] = {"restorer": darkened, "record": DISTILLED}
    chosen |= {"checkpoint": Path("runs/one"), "dataset": "rain test: some pairs", **options}
    content = write_report(evaluation, pairs, out, **chosen).read_text("utf-8")
    return content, Page(content)


def test_the_table_has_every_image_by_key_and_the_mean(make_pair: MakePair, tmp_path: Path) -> None:
    pairs = [make_pair(key, shift=shift) for key, shift in (("b", 40), ("c", 30), ("a", 5))]
    evaluation = scored(pairs)
    _, page = report(evaluation, pairs, tmp_path / "r.html")
    by_key = {image.key: image for image in evaluation.images}
    wanted = [by_key["a"], by_key["b"], by_key["c"], evaluation.mean()]
    rows = page.rows[2:]
    assert [row[0] for row in rows] == ["a", "b", "c", "mean of 3 images"]
    for row, image in zip(rows, wanted, strict=True):
        for column, value in ((1, image.psnr_before_db), (2, image.psnr_after_db)):
            assert row[column] == ("∞" if np.isinf(value) else f"{value:.3f}")
        assert row[4:6] == [f"{image.ssim_before:.4f}", f"{image.ssim_after:.4f}"]
        assert row[6] == signed(image.ssim_after - image.ssim_before, 4)
    assert "1 of 3" in page.text
    assert re.search(r"Got worse in PSNR, the largest loss first\s+a\s", page.text)
    assert evaluation.protocol in page.text


def test_further_scores_have_columns_and_cells_carry_what_they_are_sorted_by(
    tmp_path: Path,
) -> None:
    further = {"lpips_before": 0.25, "lpips_after": 0.5, "mask_found_iou_before": 0.125}
    further |= {"mask_found_iou_after": 0.75}
    images = (
        ImageScore("a", 20.0, 21.123456, 0.5, 0.6, further),
        ImageScore("b", 20.0, np.inf, 0.5, 0.4, further),
    )
    evaluation = Evaluation(images, "y", 0, None, 32)
    _, page = report(evaluation, [], tmp_path / "r.html", num_pictures=0)
    found = [cell for cell in page.of("td") if "data-value" in cell]
    values = [float(str(cell["data-value"])) for cell in found]
    assert values[:9] == [20.0, 21.123456, 21.123456 - 20.0, 0.5, 0.6, 0.6 - 0.5, 0.25, 0.5, 0.25]
    assert values[9:12] == [20.0, np.inf, np.inf]
    # Of LPIPS more is worse.
    assert [place for place, cell in enumerate(found) if "class" in cell] == [8, 14, 17]
    assert "LPIPS, lower is better" in page.text
    assert ["mask found iou", "0.1250", "0.7500", "+0.6250"] in page.rows


def test_the_extremes_are_drawn_once_each_best_and_worst_first(
    make_pair: MakePair, tmp_path: Path
) -> None:
    shifts = [35, 5, 26, 12, 38, 22, 30, 15, 33, 9]
    pairs = [make_pair(f"k{shift:02d}", shift=shift) for shift in shifts]
    calls: list[tuple[int, int]] = []
    _, page = report(
        scored(pairs), pairs, tmp_path / "r.html", progress=lambda *call: calls.append(call)
    )
    drawn = [heading.split()[0] for heading in page.headings if heading.startswith("k")]
    assert drawn == ["k38", "k35", "k33", "k30", "k05", "k09", "k12", "k15"]
    assert calls == [(done, 8) for done in range(1, 9)]
    _, page = report(scored(pairs), pairs, tmp_path / "r.html", num_pictures=1)
    assert [h.split()[0] for h in page.headings if h.startswith("k")] == ["k38", "k05"]
    _, page = report(scored(pairs), pairs, tmp_path / "r.html", num_pictures=0)
    assert not page.of("img")


@pytest.mark.parametrize("size", range(12))
def test_choosing_takes_each_image_at_most_once(size: int, rng: np.random.Generator) -> None:
    gains = rng.permutation(size).astype(float)
    best, worst = choose_extremes(gains, 4)
    assert len({*best, *worst}) == len(best) + len(worst) == min(size, 8)
    assert gains[best].tolist() == sorted(gains, reverse=True)[: len(best)]
    assert gains[worst].tolist() == sorted(gains)[: len(worst)]


@pytest.mark.parametrize("falls", [True, False])
@pytest.mark.parametrize(("shape", "border_px"), [((200, 170), 0), ((40, 190), 3), ((20, 9), 2)])
def test_the_crop_is_the_best_of_all_that_fit_the_border(
    shape: tuple[int, int], border_px: int, falls: bool, rng: np.random.Generator
) -> None:
    change = rng.integers(-50, 51, shape).astype(float)
    crop, total = find_crop(change, border_px=border_px, falls=falls)
    height, width = (min(CROP_PX, side - 2 * border_px) for side in shape)
    sums = {
        (y, x): change[y : y + height, x : x + width].sum()
        for y in range(border_px, shape[0] - border_px - height + 1)
        for x in range(border_px, shape[1] - border_px - width + 1)
    }
    assert (crop.height, crop.width) == (height, width)
    assert sums[crop.y, crop.x] == total
    assert total == (min if falls else max)(sums.values())


def test_crops_are_the_pixels_themselves_with_their_own_psnr(
    make_pair: MakePair, tmp_path: Path, rng: np.random.Generator
) -> None:
    clean = rng.integers(50, 150, (300, 640, 3), dtype=np.uint8)
    degraded = clean.copy()
    degraded[20:120, 400:520] += 40  # what darkening mends; it harms all the rest
    pair = make_pair("wide", pictures=(degraded, clean))
    _, page = report(scored([pair]), [pair], tmp_path / "r.html")
    wholes, crops = page.of("img")[:3], page.of("img")[3:]
    found = re.search(r"crop of 160x160 at \((\d+), (\d+)\), where the squared", page.text)
    assert found
    x, y = map(int, found.groups())
    assert y <= 20
    assert x <= 400 <= 520 <= x + CROP_PX
    cut = np.s_[y : y + CROP_PX, x : x + CROP_PX]
    for image, picture in zip(crops, (degraded, darkened(degraded), clean), strict=True):
        np.testing.assert_array_equal(decoded(image["src"]), picture[cut])
    for picture in (degraded, darkened(degraded)):
        assert f"crop {psnr(picture[cut], clean[cut]):.2f} dB" in page.text
    assert all(decoded(image["src"]).shape == (225, WHOLE_PX, 3) for image in wholes)
    assert f"left: {100 * x / 640:.3f}%; top: {100 * y / 300:.3f}%" in str(page.of("i")[0]["style"])


def test_pictures_no_larger_than_a_crop_are_shown_whole(
    make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair("small", shift=40, shape=(CROP_PX, CROP_PX))
    _, page = report(scored([pair]), [pair], tmp_path / "r.html")
    assert len(page.of("img")) == 3
    assert "crop of" not in page.text


def test_long_evaluations_list_the_extremes_and_say_so(tmp_path: Path) -> None:
    gains = np.random.default_rng(0).permutation(np.linspace(-1, 2, 501)).tolist()
    evaluation = listed(gains)
    _, page = report(evaluation, [], tmp_path / "r.html", num_pictures=0)
    rows = [row for row in page.rows if row[0].isdigit()]
    assert len(rows) == 100
    ranked = sorted(evaluation.images, key=psnr_gain)
    assert {row[0] for row in rows} == {i.key for i in (*ranked[:50], *ranked[-50:])}
    assert "Of 501 images only the extremes are listed" in page.text
    assert sum(row[0] == "mean of 501 images" for row in page.rows) == 2
    num_worse = sum(gain < 0 for gain in gains)
    assert f"{num_worse} of 501" in page.text
    assert f"50 of {num_worse}, the others are in scores.csv" in page.text
    _, page = report(listed(gains[:500]), [], tmp_path / "r.html", num_pictures=0)
    assert len([row for row in page.rows if row[0].isdigit()]) == 500


@pytest.mark.parametrize(
    "gains",
    [[0.0], [1.5] * 3, [-0.3, -0.2], [-3.0, 0.0, 0.0, 9.0], np.linspace(-700, 9, 40).tolist()],
)
def test_the_bars_count_every_gain_and_part_gains_from_losses(
    gains: list[float], tmp_path: Path
) -> None:
    content, _ = report(listed(gains), [], tmp_path / "r.html", num_pictures=0)
    bars = re.findall(r"<title>(\S+) to (\S+) dB: (\d+) images?</title>", content)
    numbers = [tuple(float(part.replace(MINUS, "-")) for part in bar) for bar in bars]
    assert len(numbers) <= 24
    assert sum(count for *_, count in numbers) == len(gains)
    assert sum(count for low, *_, count in numbers if low < 0) == sum(g < 0 for g in gains)
    assert not any(low < 0 < high for low, high, _ in numbers)


def test_identical_pictures_have_no_finite_psnr_and_break_nothing(
    make_pair: MakePair, tmp_path: Path
) -> None:
    clean = np.zeros((20, 20, 3), np.uint8)
    pairs = [
        make_pair("lost", shift=0),  # inf before
        make_pair("won", shift=40),  # inf after
        make_pair("kept", pictures=(clean, clean)),  # both
        make_pair("plain", shift=30),
    ]
    evaluation = scored(pairs)
    _, page = report(evaluation, pairs, tmp_path / "r.html")
    rows = {row[0]: row[1:4] for row in page.rows}
    assert rows["kept"] == ["∞", "∞", "0.000"]
    assert rows["won"][1:] == ["∞", "+∞"]
    assert rows["lost"][::2] == ["∞", f"{MINUS}∞"]
    assert rows["mean of 4 images"] == ["∞", "∞", "n/a"]
    assert "2 infinite left out" in page.text
    assert "infinite PSNR" in page.text
    assert not re.search(r"\b(nan|inf)\b", page.text)

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    write_evaluation(evaluation, tmp_path)
    scores = json.loads((tmp_path / "scores.json").read_text(), parse_constant=refuse)
    by_key = {image["key"]: image for image in scores["images"]}
    assert by_key["kept"]["psnr_after_db"] is None
    assert by_key["won"]["psnr_before_db"] == evaluation.images[1].psnr_before_db
    assert scores["mean"]["psnr_before_db"] is None
    assert "infinite" in scores["remark"]


def test_the_page_needs_nothing_else_and_one_evaluation_gives_one_page(
    make_pair: MakePair, tmp_path: Path
) -> None:
    pairs = [make_pair(f"k{i}", shift=5 * i + 3, shape=(170, 200)) for i in range(5)]
    evaluation = scored(pairs, space="y", border_px=4)
    content, page = report(evaluation, pairs, tmp_path / "deep" / "r.html")
    assert content == report(evaluation, pairs, tmp_path / "again.html")[0]
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r'src="data:[^"]*"', "", content))
    images = page.of("img")
    assert len(images) == 5 * 6
    assert all(str(image["src"]).startswith("data:image/") for image in images)
    assert all(image["alt"] for image in images)
    policy = [meta["content"] for meta in page.of("meta") if "http-equiv" in meta]
    assert str(policy[0]).startswith("default-src 'none'")
    assert not page.of("input")  # sliders are the script's; without it nothing is dead


def test_the_page_tells_how_the_network_was_made(tmp_path: Path) -> None:
    def told(record: dict[str, Any]) -> str:
        page = report(listed([1.0]), [], tmp_path / "r.html", num_pictures=0, record=record)[1]
        return " ".join(page.text.split())

    text = told(DISTILLED)
    assert "Evaluation of runs/one" in text
    for part in ("nafnet, preset tiny", "distill", "rain train", "clean pictures", "random-vgg"):
        assert part in text
    assert "superpixel regions, not SAM (levels (5, 15))" in text
    assert "was trained with superpixel regions, not SAM" in text
    network2 = {"name": "nafnet", "preset": "gopro_w64", "settings": {}, "init": None}
    config = {"network2": network2, "fusion": {"image": "degraded", "use_masks": False}}
    text = told({**DISTILLED, "stage": "joint", "config": config})
    assert "name nafnet, preset gopro_w64, sees degraded pictures, no masks" in text
    sam = {**DISTILLED["masks"], "segmenter": {"segmenter": "sam", "checkpoint_sha256": "a" * 64}}
    text = told({**DISTILLED, "masks": sam, "analyzer": None})
    assert f"sam (checkpoint_sha256 {'a' * 12})" in text
    assert "trained without SGR" in text
    assert "superpixel" not in text
    text = told({**DISTILLED, "stage": "control", "analyzer": None})
    assert "this stage trains without" in text
    assert "superpixel" not in text
    official = {"network": {"name": "nafnet", "preset": "gopro_w32"}, "origin": "NAFNet.pth"}
    text = told(official)
    assert "Evaluation of NAFNet.pth" in text
    assert "not recorded: published weights" in text


def test_names_are_text_and_nothing_else(make_pair: MakePair, tmp_path: Path) -> None:
    key, dataset = '"><script>alert(1)</script>', "<img src=x onerror=alert(2)> {{ 7 * 7 }}"
    pairs = [make_pair(key, shift=3), make_pair("lone\udce9", shift=40)]
    evaluation = scored(pairs)
    _, page = report(evaluation, pairs, tmp_path / "r.html", dataset=dataset)
    assert len(page.of("script")) == 2
    assert "alert" not in page.script
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert key in page.text
    assert dataset in page.text
    assert "lone\\udce9" in page.text
    write_evaluation(evaluation, tmp_path)
    assert "lone\\udce9" in (tmp_path / "scores.csv").read_text("utf-8")


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    with pytest.raises(UsageError, match="no image was evaluated"):
        report(Evaluation((), "rgb", 0, None, 32), [], out)
    with pytest.raises(UsageError, match="0 or more, got -1"):
        report(listed([1.0]), [], out, num_pictures=-1)
    assert not out.exists()


def test_the_command_writes_the_report_beside_the_scores(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    torch.manual_seed(0)
    network = build_network("nafnet", preset="tiny")
    save_checkpoint(tmp_path / "run" / "model.safetensors", network.state_dict(), DISTILLED)
    for name in ("a", "b", "c"):
        for side in ("noisy", "clean"):
            picture = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            write_png(tmp_path / "data" / side / f"{name}.png", picture)
    command = ["evaluate", str(tmp_path / "run"), "--dataset", "folder", "--root"]
    command += [str(tmp_path / "data"), "--degraded-pattern", "noisy/{key}.png"]
    command += ["--clean-pattern", "clean/{key}.png", "--device", "cpu"]
    result = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out" / "report.html") in result.output
    page = Page((tmp_path / "out" / "report.html").read_text("utf-8"))
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [row[0] for row in page.rows[2:-1]] == ["a", "b", "c"]
    assert page.rows[-1][2] == f"{scores['mean']['psnr_after_db']:.3f}"
    assert "folder: 3 pairs, 32x24" in page.text
    # What was drawn scores as what was evaluated.
    for image in scores["images"]:
        assert f"restored {image['psnr_after_db']:.2f} dB" in page.text
