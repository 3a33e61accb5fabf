"""The report: true numbers, the strangest first, and one page that is safe and self-contained."""

import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from samprior.storage import MaskSet, MaskStore, Record
from samprior.storage.charts import draw_charts
from samprior.storage.drawing import draw_masks, drawn_shape, mask_colours, shrink_masks
from samprior.storage.errors import UsageError
from samprior.storage.inspect import write_report
from samprior.storage.manifest import Header, write_header
from samprior.storage.survey import Strangeness, choose, counted, percent, survey
from samprior.storage.writer import write_shard

VOID = {"meta", "img", "input", "br", "link", "hr"}
MakeStore = Callable[..., MaskStore]


class Page(HTMLParser):
    """Tags that were opened and closed in order, with their attributes and the visible text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.script = ""
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "h3":
            self.headings.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text += data
        if "script" in self._open:
            self.script += data
        if "h3" in self._open:
            self.headings[-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def boxes(*masks: tuple[int, int, int, int], shape: tuple[int, int] = (40, 60)) -> MaskSet:
    """Rectangular masks as (y0, x0, y1, x1)."""
    planes = np.zeros((len(masks), *shape), np.bool_)
    for plane, (y0, x0, y1, x1) in zip(planes, masks, strict=True):
        plane[y0:y1, x0:x1] = True
    return MaskSet.from_masks(planes)


def random_masks(rng: np.random.Generator, num_masks: int, shape: tuple[int, int]) -> MaskSet:
    corners = np.sort(rng.integers(0, min(shape), (num_masks, 2, 2)), axis=1).reshape(-1, 4)
    return boxes(*map(tuple, corners), shape=shape)


def record(key: str, masks: MaskSet) -> Record:
    rng = np.random.default_rng(len(key))
    clean, degraded = rng.integers(0, 256, (2, *masks.shape, 3), np.uint8)
    return Record(key, degraded, clean, masks)


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    def make(
        records: Sequence[Record],
        *,
        paired: bool = True,
        segmenter: object = "sam",
        quarantined: dict[str, str] | None = None,
        num_shards: int = 2,
    ) -> MaskStore:
        root = tmp_path / "store"
        made_of = {
            "dataset": {"name": "rain", "split": "train", "listing_sha256": "0" * 64},
            "segmenter": segmenter,
            "source": "clean",
        }
        num_images = len(records) + len(quarantined or {})
        header = Header(
            num_images=num_images,
            num_shards=min(num_shards, num_images),
            images_per_shard=-(-num_images // num_shards),
            paired=paired,
            made_of=made_of,
        )
        write_header(root, header)
        half = (len(records) + 1) // 2
        write_shard(root, 0, records[:half], paired=paired, quarantined=quarantined)
        write_shard(root, 1, records[half:], paired=paired)
        return MaskStore.open(root)

    return make


@pytest.fixture
def plain_records() -> list[Record]:
    """Ten images alike, each with four masks, two of them nested."""
    masks = [
        boxes((0, 0, 40, 30), (0, 30, 36, 60), (5, 5, 20, 20), (8, 8, 12, 12 + i % 2))
        for i in range(10)
    ]
    return [record(f"plain/{i}", each) for i, each in enumerate(masks)]


def report(store: MaskStore, out: Path, **options: int) -> tuple[str, Page]:
    content = write_report(store, out, **options).read_text("utf-8")
    return content, Page(content)


def test_numbers_equal_a_count_over_the_planes(make_store: MakeStore) -> None:
    rng = np.random.default_rng(5)
    shapes = [(30, 41), (64, 20), (17, 17)]
    sets = [random_masks(rng, int(k), shapes[i % 3]) for i, k in enumerate([3, 0, 9, 1, 25])]
    store = make_store([record(f"k{i}", each) for i, each in enumerate(sets)])
    found = survey(store)

    planes = [each.masks.to_masks() for each in store]
    depths = [each.sum(axis=0) for each in planes]
    assert found.num_masks.tolist() == [3, 0, 9, 1, 25]
    np.testing.assert_allclose(found.coverage, [(d > 0).mean() for d in depths], atol=1e-15)
    assert found.depth.tolist() == [d.max() for d in depths]
    shares = [each.mean(axis=(1, 2)) for each in planes]
    np.testing.assert_allclose(found.area_shares, np.concatenate(shares), atol=1e-15)
    np.testing.assert_allclose(found.largest, [s.max(initial=0) for s in shares], atol=1e-15)
    flat = np.concatenate([d.reshape(-1) for d in depths])
    assert found.depth_pixels.tolist() == np.bincount(flat).tolist()


def test_scores_are_robust_z_scores_and_no_masks_come_first(make_store: MakeStore) -> None:
    rng = np.random.default_rng(1)
    sets = [random_masks(rng, int(k), (50, 50)) for k in rng.integers(1, 40, 15)]
    sets[7] = boxes(shape=(50, 50))
    found = survey(make_store([record(f"k{i:02}", each) for i, each in enumerate(sets)]))
    expected = []
    for values, floor in (
        (found.num_masks, 1),
        (found.coverage, 0.01),
        (found.largest, 0.01),
        (found.depth, 1),
    ):
        away = np.abs(values - np.median(values))
        expected.append(away / max(1.4826 * np.median(away), floor))
    scores = np.max(expected, axis=0)
    scores[7] = np.inf
    strangeness = Strangeness(found)
    np.testing.assert_allclose(strangeness.scores, scores)
    ranking = strangeness.ranking()
    assert ranking[0] == 7
    assert (np.diff(scores[ranking][1:]) <= 0).all()
    assert strangeness.reason(7) == "no masks"


def test_the_strangest_are_drawn_first_with_the_reason(
    make_store: MakeStore, plain_records: list[Record], tmp_path: Path
) -> None:
    bare = record("bare", boxes())
    thin = record("thin", boxes((0, 0, 4, 30), (4, 0, 6, 2), (8, 0, 9, 2), (20, 4, 21, 6)))
    many = record("many", boxes(*((y, 0, y + 1, 60) for y in range(38))))
    store = make_store([*plain_records[:5], thin, bare, many, *plain_records[5:]])
    _, page = report(store, tmp_path / "r.html", num_images=6)
    drawn = page.headings[4:]  # the first are those of the charts
    assert [heading.split()[0] for heading in drawn[:3]] == ["bare", "thin", "many"]
    assert "no masks" in page.text
    assert "coverage 5 %, median 95 %" in page.text
    assert "38 masks, median 4" in page.text
    places = [int(re.findall(r"image (\d+) of 13", heading)[0]) for heading in drawn]
    assert places[3:] == sorted(places[3:])
    assert len(set(places)) == 6
    assert "Evenly spaced" in page.text


@pytest.mark.parametrize(("num_images", "size"), [(0, 9), (1, 9), (4, 9), (9, 9), (50, 9), (6, 0)])
def test_choosing_takes_half_the_strangest_and_each_image_once(num_images: int, size: int) -> None:
    ranking = [int(i) for i in np.random.default_rng(0).permutation(size)]
    for seed in range(5):
        strangest, spaced = choose(ranking, num_images, seed=seed)
        assert strangest == ranking[: len(strangest)]
        assert len(strangest) - len(spaced) in (0, 1)
        assert len({*strangest, *spaced}) == min(num_images, size)
        assert spaced == sorted(spaced)


def test_the_spacing_is_even_over_a_large_store() -> None:
    _, spaced = choose(list(range(100_000)), 24, seed=3)
    steps = np.diff(spaced)
    assert steps.max() - steps.min() <= 1


def test_the_page_needs_nothing_else_and_shows_each_view(
    make_store: MakeStore, plain_records: list[Record], tmp_path: Path
) -> None:
    calls: list[tuple[int, int]] = []
    store = make_store(plain_records)
    out = write_report(
        store, tmp_path / "r.html", num_images=4, progress=lambda *call: calls.append(call)
    )
    content = out.read_text("utf-8")
    page = Page(content)
    assert calls == [(done, 4) for done in range(5)]
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r'src="data:[^"]*"', "", content))
    images = page.of("img")
    assert len(images) == 12
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert all(image["alt"].startswith("plain/") for image in images)
    assert len(page.of("svg")) == 4
    assert all(svg["aria-label"] for svg in page.of("svg"))
    assert {figure["data-name"] for figure in page.of("figure")} == {"masks", "clean", "degraded"}
    for told in ("rain", "train", "10 of 10 planned", "2 of 2 planned", store.fingerprint[:12]):
        assert told in page.text
    assert "superpixel" not in page.text


def test_one_store_gives_one_page(
    make_store: MakeStore, plain_records: list[Record], tmp_path: Path
) -> None:
    store = make_store(plain_records)
    first, second = (report(store, tmp_path / name, num_images=6)[0] for name in ("a", "b"))
    assert first == second


def test_an_unpaired_store_has_two_views(
    make_store: MakeStore, plain_records: list[Record], tmp_path: Path
) -> None:
    alone = [Record(each.key, each.clean, each.clean, each.masks) for each in plain_records[:2]]
    _, page = report(make_store(alone, paired=False), tmp_path / "r.html")
    assert len(page.of("img")) == 4
    assert {figure["data-name"] for figure in page.of("figure")} == {"masks", "clean"}
    assert "no pairs" in page.text


def test_superpixels_are_called_what_they_are(
    make_store: MakeStore, plain_records: list[Record], tmp_path: Path
) -> None:
    segmenter = {"segmenter": "superpixel", "levels": [5, 15]}
    _, page = report(make_store(plain_records[:1], segmenter=segmenter), tmp_path / "r.html")
    assert "superpixel regions, not SAM (levels (5, 15))" in page.text
    assert "These are superpixel regions, not SAM" in page.text


def test_keys_and_reasons_are_text_and_nothing_else(make_store: MakeStore, tmp_path: Path) -> None:
    key, reason = '"><script>alert(1)</script>', "<img src=x onerror=alert(2)> &amp; {{ 7 * 7 }}"
    store = make_store(
        [record(key, boxes((0, 0, 9, 9))), record("lone\udce9", boxes())],
        quarantined={key + "2": reason},
        segmenter="</pre><script>alert(3)</script>",
    )
    _, page = report(store, tmp_path / "r.html")
    assert len(page.of("script")) == 2
    assert "alert" not in page.script
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert key in page.text
    assert reason in page.text
    assert "lone\\udce9" in page.text
    assert {image["src"][:5] for image in page.of("img")} == {"data:"}


def test_an_empty_store_says_so(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store([], quarantined={"a": "truncated", "b": "transparent"})
    _, page = report(store, tmp_path / "deep" / "r.html")
    assert "holds no image: all of them were quarantined" in page.text
    assert "truncated" in page.text
    assert not page.of("img")
    assert not page.of("svg")


def test_an_unfinished_store_says_what_is_missing(
    make_store: MakeStore, plain_records: list[Record], tmp_path: Path
) -> None:
    _, page = report(make_store(plain_records, num_shards=5), tmp_path / "r.html", num_images=0)
    assert "3 of 5 shards are missing" in page.text
    assert not page.of("img")


def test_images_without_any_mask_make_a_page(make_store: MakeStore, tmp_path: Path) -> None:
    _, page = report(make_store([record("a", boxes()), record("b", boxes())]), tmp_path / "r.html")
    assert page.text.count("no masks") == 2
    assert len(page.of("svg")) == 3
    assert "no mask has an area" in page.text


def test_a_negative_number_of_images_is_refused(
    make_store: MakeStore, plain_records: list[Record], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="0 or more, got -1"):
        write_report(make_store(plain_records), tmp_path / "r.html", num_images=-1)
    assert not (tmp_path / "r.html").exists()


def test_the_bars_count_every_image_mask_and_pixel(make_store: MakeStore) -> None:
    rng = np.random.default_rng(2)
    sets = [random_masks(rng, int(k), (60, 60)) for k in (1, 3, 90, 400)]
    sets.append(boxes((0, 0, 40, 60)))  # the whole picture
    found = survey(make_store([record(f"k{i}", each) for i, each in enumerate(sets)]))
    masks, areas, coverage, depth = (chart.svg for chart in draw_charts(found))
    for svg, total in ((masks, 5), (coverage, 5), (areas, int((found.area_shares > 0).sum()))):
        assert sum(map(int, re.findall(r": (\d+) (?:image|mask)s?</title>", svg))) == total
    assert depth.count("<rect") == min(24, len(found.depth_pixels))


def test_nested_masks_stay_visible_and_bare_pixels_are_told_apart() -> None:
    grey = np.full((40, 60, 3), 128, np.uint8)
    masks = boxes((10, 10, 30, 40), (15, 15, 20, 20))
    for order in ([0, 1], [1, 0]):
        drawn = draw_masks(grey, masks.select(order))
        outer, inner = drawn[12, 36], drawn[17, 17]
        assert np.abs(outer.astype(int) - inner).max() > 30
        assert (drawn[2, 2] < outer.max()).all()
        assert len(np.unique(drawn[2, 2])) == 1
        # Contours lie on the outermost pixels inside the mask, in its full colour.
        assert drawn[10, 25] == pytest.approx(mask_colours(2)[0], abs=1)
        assert drawn[15, 17] == pytest.approx(mask_colours(2)[1], abs=1)
        assert np.ptp(drawn[9, 25]) == 0


def test_colours_of_neighbouring_numbers_are_far_apart() -> None:
    colours = mask_colours(200)
    assert ((colours >= 0) & (colours <= 255)).all()
    assert len(np.unique(colours[:100].round(), axis=0)) == 100
    for apart in (1, 2, 3):
        assert np.linalg.norm(colours[apart:] - colours[:-apart], axis=1).min() > 60


def test_masks_shrink_as_planes_do() -> None:
    masks = random_masks(np.random.default_rng(0), 12, (900, 1350))
    shape = drawn_shape(masks.shape)
    assert max(shape) <= 640
    assert shape[0] / shape[1] == pytest.approx(900 / 1350, rel=0.01)
    assert drawn_shape((300, 200)) == (300, 200)
    y, x = (
        ((np.arange(small) + 0.5) * large / small).astype(int)
        for small, large in zip(shape, masks.shape, strict=True)
    )
    np.testing.assert_array_equal(
        shrink_masks(masks, shape).to_masks(), masks.to_masks()[:, y[:, None], x]
    )


@pytest.mark.parametrize(
    ("share", "told"),
    [(0, "0 %"), (0.0004, "0.04 %"), (0.814, "81 %"), (0.9996, "99.96 %"), (0.99999, "99.99 %")],
)
def test_shares_near_the_ends_keep_their_digits(share: float, told: str) -> None:
    assert percent(share) == told
    assert percent(1.0) == "100 %"
    assert counted(1, "mask") == "1 mask"
    assert counted(1234, "mask") == "1,234 masks"


def test_real_sam_masks_are_drawn(make_store: MakeStore, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "sam_masks" / "dog"
    picture: npt.NDArray[np.uint8] = np.asarray(Image.open(folder / "image.jpg").convert("RGB"))
    files = sorted((folder / "masks").glob("*.png"), key=lambda file: int(file.stem))
    masks = MaskSet.from_masks(
        np.stack([np.asarray(Image.open(f).convert("L")) > 0 for f in files])
    )
    store = make_store([Record("dog", picture, picture, masks)], paired=False)
    content, page = report(store, tmp_path / "r.html")
    assert "dog: 66 masks over the clean picture" in content
    assert len(page.of("img")) == 2
