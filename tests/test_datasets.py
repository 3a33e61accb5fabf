"""Datasets are found whole, in one order, under clean keys, or the error names the files."""

import io
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from samprior.pipeline.datasets import Dataset, Pair, check_pairs, find_dataset, require_good_pairs
from samprior.storage.errors import LayoutError, UsageError

Put = Callable[..., None]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write tiny pictures at paths relative to the test's folder."""

    def write(*paths: str, size: tuple[int, int] = (8, 6)) -> None:
        for path in map(tmp_path.joinpath, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = io.BytesIO()
            Image.new("RGB", size).save(stream, format="PNG")
            path.write_bytes(stream.getvalue())

    return write


def shown(pairs: tuple[Pair, ...], root: Path) -> list[tuple[str, str, str]]:
    return [
        (pair.key, *(path.relative_to(root).as_posix() for path in (pair.degraded, pair.clean)))
        for pair in pairs
    ]


# --- every layout -------------------------------------------------------------------------------

LAYOUT_CASES = {
    "rain13k": ("rain", "input-target", "input/{}.png", "target/{}.jpg", ["1", "10", "2"]),
    "one below": ("rain", "input-target", "R100L/input/{}.png", "R100L/target/{}.png", ["1"]),
    "rain100": ("rain", "rain-norain", "rain/{}.png", "norain/{}.png", ["001", "002"]),
    "rain100 -": ("rain", "rain-N in rain", "rain/rain-{}.png", "norain/norain-{}.png", ["001"]),
    "rain100 X2": ("rain", "X2", "rain/X2/{}x2.png", "norain/{}.png", ["001", "norain-002"]),
    "rain100 x2": ("rain", "x2 names", "rain/{}x2.png", "norain/{}.png", ["001"]),
    "rain100 rainy": ("rain", "rain-N in rainy", "rainy/rain-{}.png", "norain-{}.png", ["001"]),
    "rain100 flat": ("rain", "rain-N", "rain-{}.png", "norain-{}.png", ["001", "100"]),
    "noisy/clean": ("sensenoise", "noisy-clean", "noisy/{}.JPG", "clean/{}.JPG", ["a/1", "b/1"]),
    "noisy/gt": ("sensenoise", "noisy-gt", "noisy/{}.png", "gt/{}.png", ["1"]),
    "input/gt": ("sensenoise", "input-gt", "input/{}.png", "gt/{}.png", ["1"]),
    "input/target": ("sensenoise", "input-target", "input/{}.png", "target/{}.png", ["1"]),
    "_noisy/_clean": ("sensenoise", "_noisy-_clean", "{}_noisy.png", "{}_clean.png", ["1", "s/2"]),
    "_real/_mean": ("sensenoise", "_real-_mean", "{}_real.JPG", "{}_mean.JPG", ["C_5_real", "x"]),
    "both": (
        "sensenoise", "noisy-clean with endings", "noisy/{}_noisy.png", "clean/{}_clean.png", ["1"],
    ),
    "folder": ("folder", "degraded-clean", "degraded/{}.png", "clean/{}.tif", ["1", "deep/er/2"]),
    "folder input": ("folder", "input-target", "input/{}.png", "target/{}.png", ["1"]),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUT_CASES)
@pytest.mark.parametrize("split", [None, "test"])
def test_layout_is_found(put: Put, tmp_path: Path, case: str, split: str | None) -> None:
    name, layout, degraded, clean, names = LAYOUT_CASES[case]
    base = f"{split}/" if split else ""
    put(*(base + side.format(one) for one in names for side in (degraded, clean)))
    dataset = find_dataset(name, tmp_path, split=split)
    below = "R100L/" if case == "one below" else ""
    assert dataset.layout == layout
    assert (dataset.name, dataset.root, dataset.split) == (name, tmp_path, split)
    assert shown(dataset.pairs, tmp_path) == [
        (below + one, base + degraded.format(one), base + clean.format(one)) for one in names
    ]
    assert check_pairs(dataset) == []


def test_gopro(put: Put, tmp_path: Path) -> None:
    for split, sequence in (("train", "GOPR0372_07_00"), ("train", "A"), ("test", "B")):
        for side in ("blur", "blur_gamma", "sharp"):
            put(*(f"{split}/{sequence}/{side}/{frame:06d}.png" for frame in (47, 48)))
    train = find_dataset("gopro", tmp_path, split="train")
    assert [pair.key for pair in train.pairs] == [
        "A/000047",
        "A/000048",
        "GOPR0372_07_00/000047",
        "GOPR0372_07_00/000048",
    ]
    assert train.pairs[0].degraded == tmp_path / "train" / "A" / "blur" / "000047.png"
    assert train.describe() == "4 pairs in 2 sequences, 8x6"
    gamma = find_dataset("gopro", str(tmp_path), split="train", variant="blur_gamma")
    assert gamma.pairs[0].degraded == tmp_path / "train" / "A" / "blur_gamma" / "000047.png"
    assert gamma.pairs[0].key == train.pairs[0].key
    assert find_dataset("gopro", tmp_path, split="test").describe() == "2 pairs in 1 sequence, 8x6"
    with pytest.raises(LayoutError, match=r"holds test, train; say which split.*--split"):
        find_dataset("gopro", tmp_path)


def test_rain1400_pairs_many_rainy_pictures_with_one_clean(put: Put, tmp_path: Path) -> None:
    put("testing/ground_truth/900.jpg", "testing/ground_truth/901.jpg")
    put(*(f"testing/rainy_image/{one}_{n}.jpg" for one in (900, 901) for n in range(1, 15)))
    dataset = find_dataset("rain", tmp_path, split="testing")
    assert dataset.layout == "rainy_image-ground_truth"
    keys = [pair.key for pair in dataset.pairs]
    assert keys == sorted(f"{one}_{n}" for one in (900, 901) for n in range(1, 15))
    assert {pair.clean.name for pair in dataset.pairs if pair.key.startswith("900_")} == {"900.jpg"}
    assert check_pairs(dataset) == []


def test_rain_regions_are_left_out_but_other_strangers_are_not(put: Put, tmp_path: Path) -> None:
    put("rain-1.png", "norain-1.png", "rainregion-1.png", "rainstreak-1.png")
    with pytest.raises(LayoutError, match=r"1 image of no pair beside the pairs: rainstreak-1.png"):
        find_dataset("rain", tmp_path)
    (tmp_path / "rainstreak-1.png").unlink()
    assert [pair.key for pair in find_dataset("rain", tmp_path).pairs] == ["1"]


@pytest.mark.parametrize(
    ("degraded", "clean", "keys"),
    [
        ("noisy/{key}.png", "clean/{key}_gt.png", ["a/1", "a/2"]),
        ("./noisy/", "half/x", ["a/1", "a/2"]),
        ("noisy/a/{key}", "clean/a/{key}_gt", ["1", "2"]),
        ("noisy/{key}/1.png", "clean/{key}/1_gt.png", ["a"]),
        ("{key}.png", "{key}_gt.png", ["b/1"]),
    ],
)
def test_patterns(put: Put, tmp_path: Path, degraded: str, clean: str, keys: list[str]) -> None:
    if keys == ["b/1"]:
        put("b/1.png", "b/1_gt.png")
    else:
        put("noisy/a/1.png", "noisy/a/2.PNG", "clean/a/1_gt.png", "clean/a/2_gt.png")
        put("half/x/a/1.jpg", "half/x/a/2.bmp", "train/unrelated.png", "test/unrelated.png")
    dataset = find_dataset("folder", tmp_path, degraded_pattern=degraded, clean_pattern=clean)
    assert [pair.key for pair in dataset.pairs] == keys
    assert "{key}" in dataset.layout


@pytest.mark.parametrize(
    ("degraded", "clean", "message"),
    [
        ("noisy/*.png", "clean/{key}.png", r"'noisy/\*.png' must hold one \{key\}"),
        ("noisy/{name}", "clean/{key}.png", "must hold one"),
        ("{key}/{key}", "clean", "must hold one"),
        ("/data/noisy", "clean", "must be relative"),
        ("../noisy", "clean", "must be relative"),
        ("same", "same/{key}", "given for both sides"),
        ("noisy", None, "come in twos"),
        (None, "clean", "come in twos"),
    ],
)
def test_bad_patterns(
    tmp_path: Path, degraded: str | None, clean: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        find_dataset("folder", tmp_path, degraded_pattern=degraded, clean_pattern=clean)


# --- what is overlooked, keys, order ------------------------------------------------------------


def test_hidden_and_other_files_are_ignored(put: Put, tmp_path: Path) -> None:
    put("input/1.png", "target/1.png", "input/._1.png", "input/.cache/2.png", ".trash/input/3.png")
    put("input/.DS_Store", "input/Thumbs.db", "target/list.txt", "input/1.png.part", "masks/1.npz")
    os.mkfifo(tmp_path / "input" / "pipe.png")
    assert [pair.key for pair in find_dataset("rain", tmp_path).pairs] == ["1"]


def test_keys_are_free_of_odd_characters(put: Put, tmp_path: Path) -> None:
    names = ["a.b c/d.e", "p+q(1)", "u\u0308ber", "\u00e9t\u00e9"]
    put(*(f"{side}/{name}.png" for name in names for side in ("input", "target")))
    keys = [pair.key for pair in find_dataset("rain", tmp_path).pairs]
    assert keys == ["a_b_c/d_e", "p_q_1_", "\u00e9t\u00e9", "\u00fcber"]
    assert keys == sorted(keys)


def test_equal_keys_are_refused_with_both_names(put: Put, tmp_path: Path) -> None:
    put(*(f"{side}/{name}.png" for name in ("a.b", "a b", "c") for side in ("input", "target")))
    with pytest.raises(LayoutError, match=r"input/a b.png and input/a.b.png \(a_b\).*Rename"):
        find_dataset("rain", tmp_path)


def test_equal_names_on_one_side_are_refused(put: Put, tmp_path: Path) -> None:
    put("input/1.png", "input/1.jpg", "target/1.png")
    with pytest.raises(LayoutError, match=r"used twice: input/1.jpg and input/1.png"):
        find_dataset("rain", tmp_path)
    put("target/1.bmp")
    (tmp_path / "input" / "1.jpg").unlink()
    with pytest.raises(LayoutError, match=r"used twice: target/1.bmp and target/1.png"):
        find_dataset("rain", tmp_path)


def test_order_does_not_depend_on_the_listing(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("b/1", "a", "B", "b-", "10", "9")
    put(*(f"{side}/{name}.png" for name in names for side in ("input", "target")))
    expected = find_dataset("rain", tmp_path).pairs
    assert [pair.key for pair in expected] == ["10", "9", "B", "a", "b-", "b/1"]
    scandir = os.scandir

    class Reversed:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert find_dataset("rain", tmp_path).pairs == expected


def test_twenty_thousand_files_and_each_folder_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("blur", "sharp"):
        for sequence in range(10):
            folder = tmp_path / "train" / f"s{sequence}" / side
            folder.mkdir(parents=True)
            for frame in range(1000):
                (folder / f"{frame:06d}.png").touch()
    scandir, read = os.scandir, []

    def counting(path: str) -> object:
        read.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    dataset = find_dataset("gopro", tmp_path, split="train")
    assert len(dataset.pairs) == 10_000
    assert [pair.key for pair in dataset.pairs] == sorted({pair.key for pair in dataset.pairs})
    assert len(read) == len(set(read)) == 1 + 1 + 10 + 20


# --- what goes wrong ----------------------------------------------------------------------------


def test_where_nothing_pairs_up_the_naming_is_to_blame(put: Put, tmp_path: Path) -> None:
    put("low/1_iso.png", "high/1_ref.png")
    with pytest.raises(LayoutError, match="Name both sides with --degraded-pattern"):
        find_dataset("folder", tmp_path)
    with pytest.raises(LayoutError, match=r"Mend the patterns.*outside \{key\}") as caught:
        find_dataset("folder", tmp_path, degraded_pattern="low", clean_pattern="high")
    assert "Complete the pairs" not in str(caught.value)


def test_files_without_partner_are_named_and_counted(put: Put, tmp_path: Path) -> None:
    put("input/1.png", "target/1.png", *(f"input/x{n}.png" for n in range(8)), "target/y.png")
    with pytest.raises(LayoutError) as caught:
        find_dataset("rain", tmp_path)
    text = str(caught.value)
    assert "8 degraded files without clean side" in text
    assert "input/x0.png, input/x1.png, input/x2.png, input/x3.png, input/x4.png and 3 more" in text
    assert "input/x0.png needs target/x0.*" in text
    assert "1 clean file without degraded side: target/y.png" in text
    assert str(tmp_path) in text


def test_missing_sharp_side(put: Put, tmp_path: Path) -> None:
    put("train/s/blur/1.png", "train/s/blur/2.png")
    with pytest.raises(LayoutError, match=r"s/blur/1.png needs s/sharp/1\.\*"):
        find_dataset("gopro", tmp_path, split="train")


def test_two_layouts_at_once_ask_for_a_variant(put: Put, tmp_path: Path) -> None:
    put("noisy/1.png", "clean/1.png", "gt/1.png")
    with pytest.raises(LayoutError, match=r"1 of 'noisy-clean', 1 of 'noisy-gt'.*--variant"):
        find_dataset("sensenoise", tmp_path)
    dataset = find_dataset("sensenoise", tmp_path, variant="noisy-gt")
    assert dataset.pairs[0].clean == tmp_path / "gt" / "1.png"
    with pytest.raises(UsageError, match="no variant 'nosy'; it has 'noisy-clean'"):
        find_dataset("sensenoise", tmp_path, variant="nosy")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'GoPr0'; did you mean 'gopro'\?"):
        find_dataset("GoPr0", ".")
    with pytest.raises(UsageError, match="Known: gopro, sensenoise, rain, folder"):
        find_dataset("kodak", ".")


def test_missing_root_and_file_as_root(put: Put, tmp_path: Path) -> None:
    put("GOPRO_Large/x.png", "archive.zip")
    with pytest.raises(LayoutError, match=r"GoPro does not exist; .* holds GOPRO_Large"):
        find_dataset("gopro", tmp_path / "GoPro")
    with pytest.raises(LayoutError, match=r"archive.zip is a file"):
        find_dataset("gopro", tmp_path / "archive.zip")
    with pytest.raises(LayoutError, match=r"holds no gopro pairs: .*found 1 image \(x.png\)"):
        find_dataset("gopro", tmp_path / "GOPRO_Large")


@pytest.mark.parametrize(
    ("root", "split"),
    [
        ("data", None),
        ("data", "train"),
        ("data/GOPRO_Large/train", "train"),
        ("data/GOPRO_Large/train/s", None),
        ("data/GOPRO_Large/train/s/blur", None),
    ],
)
def test_wrong_gopro_root_is_told_the_right_one(
    put: Put, tmp_path: Path, root: str, split: str | None
) -> None:
    put("data/GOPRO_Large/train/s/blur/1.png", "data/GOPRO_Large/train/s/sharp/1.png")
    hint = f"Try --root {tmp_path}/data/GOPRO_Large --split train"
    with pytest.raises(LayoutError) as caught:
        find_dataset("gopro", tmp_path / root, split=split)
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize(
    ("root", "split", "hint"),
    [
        ("set/input", None, "--root {}/set"),
        ("set", "train", "--root {}/set without --split"),
        ("splits/train", "train", "--root {}/splits --split train"),
        ("splits/train/input", None, "--root {}/splits --split train"),
        (".", "train", "--root {}/splits --split train"),
    ],
)
def test_wrong_rain_root_is_told_the_right_one(
    put: Put, tmp_path: Path, root: str, split: str | None, hint: str
) -> None:
    put("set/input/1.png", "set/target/1.png")
    put("splits/train/input/1.png", "splits/train/target/1.png")
    with pytest.raises(LayoutError) as caught:
        find_dataset("rain", tmp_path / root, split=split)
    assert str(caught.value).endswith("Try " + hint.format(tmp_path))


def test_splits_are_never_mixed(put: Put, tmp_path: Path) -> None:
    put(*(f"{s}/{side}/1.png" for s in ("x/train", "x/test/R") for side in ("input", "target")))
    with pytest.raises(LayoutError, match=r"x/test, x/train. Try --root \S+/x --split test"):
        find_dataset("rain", tmp_path)
    with pytest.raises(LayoutError, match="holds test, train; say which split"):
        find_dataset("rain", tmp_path / "x")
    assert [p.key for p in find_dataset("rain", tmp_path / "x", split="test").pairs] == ["R/1"]
    assert [p.key for p in find_dataset("rain", tmp_path / "x", split="test/R").pairs] == ["1"]
    with pytest.raises(UsageError, match="must be the name of a folder"):
        find_dataset("rain", tmp_path / "x", split="../x/train")


def test_an_only_split_is_taken(put: Put, tmp_path: Path) -> None:
    put("test/input/1.png", "test/target/1.png")
    assert find_dataset("rain", tmp_path).split == "test"
    put("input/1.png", "target/1.png")
    with pytest.raises(LayoutError, match="holds input, target, test; say which split"):
        find_dataset("rain", tmp_path)


def test_links_may_not_leave_the_root(put: Put, tmp_path: Path) -> None:
    put("out/1.png", "set/input/1.png", "set/target/2.png")
    root, link = tmp_path / "set", tmp_path / "set" / "target" / "1.png"
    link.symlink_to(tmp_path / "out" / "1.png")
    with pytest.raises(LayoutError, match=r"set/target/1.png is a link to .*outside of"):
        find_dataset("rain", root)
    link.unlink()
    link.symlink_to("2.png")
    (root / "input" / "2.png").symlink_to("1.png")
    assert [pair.key for pair in find_dataset("rain", root).pairs] == ["1", "2"]
    (root / "input" / "3.png").symlink_to("gone.png")
    with pytest.raises(LayoutError, match=r"input/3.png is a broken link"):
        find_dataset("rain", root)


def test_linked_folders(put: Put, tmp_path: Path) -> None:
    put("set/input/1.png", "set/real/1.png", "out/1.png")
    root, link = tmp_path / "set", tmp_path / "set" / "target"
    link.symlink_to("real")
    assert find_dataset("rain", root).pairs[0].clean == link / "1.png"
    (root / "input" / "loop").symlink_to("..")
    with pytest.raises(LayoutError, match=r"input/loop is a link back up to"):
        find_dataset("rain", root)
    (root / "input" / "loop").unlink()
    (root / "input" / "self").symlink_to("self")
    assert len(find_dataset("rain", root).pairs) == 1
    link.unlink()
    link.symlink_to(tmp_path / "out")
    with pytest.raises(LayoutError, match=r"set/target is a link to .*outside of"):
        find_dataset("rain", root)
    link.unlink()
    link.symlink_to("real")
    (tmp_path / "alias").symlink_to(root)
    assert len(find_dataset("rain", tmp_path / "alias").pairs) == 1


# --- checking -----------------------------------------------------------------------------------


def test_bad_pairs_are_reported_with_files_and_reason(put: Put, tmp_path: Path) -> None:
    names = ("empty", "fine", "sizes", "text")
    put(*(f"{side}/{name}.png" for name in names for side in ("input", "target")))
    put("target/sizes.png", size=(9, 6))
    (tmp_path / "input" / "empty.png").write_bytes(b"")
    for side in ("input", "target"):
        (tmp_path / side / "text.png").write_text("no picture")
    dataset = find_dataset("rain", tmp_path)
    seen: list[tuple[int, int]] = []
    bad = check_pairs(dataset, progress=lambda *step: seen.append(step))
    assert seen == [(n, 4) for n in range(1, 5)]
    assert [(one.key, [file.name for file in one.files]) for one in bad] == [
        ("empty", ["empty.png"]), ("sizes", ["sizes.png"] * 2), ("text", ["text.png"] * 2),
    ]  # fmt: skip
    assert "input/empty.png is empty" in bad[0].reason
    assert bad[1].reason == "sizes differ: degraded 8x6, clean 9x6"
    assert bad[2].reason.count("is not an image") == 2
    with pytest.raises(LayoutError, match=r"3 of 4 pairs .*empty \(.*sizes \(.*text \("):
        require_good_pairs(dataset)
    assert "text.png is not an image" in dataset.describe()


def test_describe_says_which_sizes_were_sampled(put: Put, tmp_path: Path) -> None:
    for number in range(40):
        for side in ("input", "target"):
            put(f"{side}/{number:02d}.png", size=(10 + number, 5))
    dataset = find_dataset("rain", tmp_path)
    assert dataset.describe() == "40 pairs, 10x5 to 49x5 (headers of 5 of 40 pairs read)"
    assert len(check_pairs(dataset)) == 0
    require_good_pairs(dataset)


# --- real data ----------------------------------------------------------------------------------


PAGE = Path(__file__).resolve().parents[1] / "docs" / "datasets.md"


def prepared(root: str, folder: Path) -> Dataset:
    """What the page's command finds below `root` after the page's loop, in `folder`."""
    (block,) = re.findall(rf"^```sh\n(cd {root}\n.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    loop, _, command = block.partition("samprior ")
    subprocess.run(["bash", "-eu", "-c", loop], cwd=folder, check=True)
    words = shlex.split(command.replace("\\\n", " "))
    said = dict(zip(words[1::2], words[2::2], strict=True))
    return find_dataset(
        said["--dataset"],
        folder / said["--root"],
        degraded_pattern=said["--degraded-pattern"],
        clean_pattern=said["--clean-pattern"],
    )


def test_the_page_says_how_to_take_in_sidd(put: Put, tmp_path: Path) -> None:
    scenes = {"0001_001_S6_L": ("0001", "010"), "0002_001_S6_N": ("0002", "011")}
    for scene, (number, shot) in scenes.items():
        for side in ("NOISY", "GT"):
            put(f"SIDD_Medium_Srgb/Data/{scene}/{number}_{side}_SRGB_{shot}.PNG")
    found = prepared("SIDD_Medium_Srgb", tmp_path)
    keys = ["0001_001_S6_L/0001_SRGB_010", "0002_001_S6_N/0002_SRGB_011"]
    assert [pair.key for pair in found.pairs] == keys
    for pair, scene in zip(found.pairs, scenes, strict=True):
        source = tmp_path / "SIDD_Medium_Srgb" / "Data" / scene
        for file, side in ((pair.degraded, "NOISY"), (pair.clean, "GT")):
            (published,) = source.glob(f"*_{side}_*")
            assert file.samefile(published)


def test_the_page_says_how_to_take_in_spa_data(put: Put, tmp_path: Path) -> None:
    lines = [
        "/real_world/1/a_1.png /real_world_gt/1/a.png",
        "/real_world/1/a_2.png /real_world_gt/1/a.png",
    ]
    for name in ("real_world/1/a_1.png", "real_world/1/a_2.png", "real_world_gt/1/a.png"):
        put(f"SPA-Data/{name}")
    (tmp_path / "SPA-Data" / "real_world.txt").write_text("\n".join(lines) + "\n")
    found = prepared("SPA-Data", tmp_path)
    assert [pair.key for pair in found.pairs] == ["1", "2"]
    for pair, line in zip(found.pairs, lines, strict=True):
        for file, listed in zip((pair.degraded, pair.clean), line.split(), strict=True):
            assert file.samefile(tmp_path / "SPA-Data" / listed.lstrip("/"))


def test_real_gopro(shared_data: Path) -> None:
    dataset = find_dataset("gopro", shared_data / "gopro" / "GOPRO_Large", split="test")
    assert [pair.key for pair in dataset.pairs] == ["Flower/000001"]
    assert dataset.describe() == "1 pair in 1 sequence, 1280x720"
    with pytest.raises(LayoutError, match=r"Try --root \S+/gopro/GOPRO_Large --split test$"):
        find_dataset("gopro", shared_data / "gopro", split="test")


def test_real_rain(shared_data: Path) -> None:
    dataset = find_dataset("rain", shared_data / "rain")
    assert [pair.key for pair in dataset.pairs] == [
        f"{n:03d}" for n in (*range(1, 8), *range(11, 18))
    ]
    assert check_pairs(dataset) == []


def test_real_noise(shared_data: Path) -> None:
    dataset = find_dataset("sensenoise", shared_data / "real_noise")
    assert dataset.layout == "_real-_mean"
    assert dataset.describe() == "70 pairs, 512x512"
    assert check_pairs(dataset) == []
