"""The benchmarks run, compare equal work, and say which side took longer."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from samprior.storage import MaskStore, Record
from samprior.storage.errors import LayoutError

TINY_SAM = ("--model", "tiny", "--points-per-side", "4", "--size", "160", "90")
WITHOUT_MEMORY = ("--only", "decoder", "--only", "post", "--only", "rest", "--only", "whole")


def run(script: ModuleType, *arguments: str) -> Result:
    result = CliRunner().invoke(script.main, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result


# pycocotools' compiled part converts arrays in a way that NumPy 2 warns of.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "arguments", "num_rows"),
    [
        ("everything", (*TINY_SAM, *WITHOUT_MEMORY, "--precision", "bfloat16"), 6),
        ("storage", ("--quick",), 10),
        (
            "distillation_cost",
            ("--network", "nafnet", "--preset", "tiny", "--crop-px", "16", "--device", "cpu"),
            2,
        ),
        ("student", ("--network", "nafnet", "--image-px", "16", "--device", "cpu"), 1),
        ("sam_in_the_loop", (*TINY_SAM[:4], "--crop-px", "64", "--device", "cpu"), 2),
    ],
)
def test_a_benchmark_prints_what_it_writes(
    benchmarks: dict[str, ModuleType], name: str, arguments: tuple[str, ...], num_rows: int
) -> None:
    printed = run(benchmarks[name], "--runs", "1", *arguments).output
    record: dict[str, Any] = json.loads(
        (benchmarks["measure"].RESULTS / f"{name}.json").read_text()
    )
    assert len(record["rows"]) == num_rows
    for macs in record.get("macs", {}).values():
        assert macs["plain"] == macs["distilled"] > 0
    assert {"device", "cores", "load_average"} <= record["machine"].keys()
    for row in record["rows"]:
        assert row["result"] in printed


# pycocotools, as above; webdataset leaves its tars to the garbage collector to close.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_every_peer_of_the_loader_is_measured_or_says_why(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent(benchmarks["readers"].Reader):  # type: ignore[misc, name-defined]
        library = ("no_such_library", "no-such-distribution")

    absent = benchmarks["peers"].Peer("a peer that nobody has", Absent, "png")
    monkeypatch.setattr(benchmarks["peers"], "PEERS", (*benchmarks["peers"].PEERS, absent))
    printed = run(benchmarks["loader"], "--quick", "--workers", "0").output
    record = json.loads((benchmarks["measure"].RESULTS / "loader.json").read_text())
    assert "no_such_library" in record["not_measured"][absent.name]
    assert "pip install no-such-distribution" in record["not_measured"][absent.name]
    readers = {row["reader"]: row for row in record["table"]}
    for peer in benchmarks["peers"].PEERS:
        if peer.name in record["not_measured"]:
            assert f"not measured: {peer.name}" in printed
            assert f"{peer.name}: not measured" in readers
        else:
            assert readers[peer.name]["one process"] > 0
            assert readers[peer.name]["batches, workers: 0"] > 0
            assert any(row["b"].endswith(peer.name) for row in record["rows"])
    for ours in ("samprior, planes", "samprior, atoms and members"):
        assert readers[ours]["one process"] > 0
        assert readers[ours]["batches, workers: 0"] > 0


# pycocotools, as above.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["PngJson", "WebDataset", "StoreReader"])
def test_workers_deliver_the_crops_that_were_asked_for(
    benchmarks: dict[str, ModuleType], tmp_path: Path, name: str
) -> None:
    peers, windows = benchmarks["peers"], benchmarks["windows"]
    records = benchmarks["pictures"].make_records(2, (192, 160))
    benchmarks["ours"].write_store(tmp_path / "store", records)
    known = (*peers.PEERS, benchmarks["loader"].PLANES)
    (chosen,) = (peer for peer in known if peer.reader.__name__ == name)
    if name != "StoreReader":
        peers.prepare(tmp_path, records, [chosen])
    asked = [windows.Window(0, 3, 17, 64), windows.Window(1, 90, 100, 64)]
    prepared = peers.Prepared(chosen, tmp_path / chosen.folder)
    (batch,) = prepared.batches(asked, batch_size=2, workers=1)
    wanted = benchmarks["delivery"].collated([peers.cut(records, window) for window in asked])
    for got, right in zip(batch, wanted, strict=True):
        np.testing.assert_array_equal(got.numpy(), right.numpy())


def test_our_batches_are_the_same_whoever_reads_them(
    benchmarks: dict[str, ModuleType], tmp_path: Path, make_store: Callable[..., MaskStore]
) -> None:
    ours, windows = benchmarks["ours"], benchmarks["windows"]
    store = make_store(tmp_path / "store", [(40, 56), (56, 40)])
    drawn = list(windows.draw_windows([(40, 56), (56, 40)], 24, 5, np.random.default_rng(0)))
    for planes in (True, False):
        one, other = (
            [
                tuple(batch) if planes else [batch.degraded.clone(), batch.regions.atoms.clone()]
                for batch in ours.batches(
                    store, drawn, batch_size=3, threads=threads, planes=planes
                )
            ]
            for threads in (0, 2)
        )
        assert len(one) == len(other) == 4
        for mine, theirs in zip(one, other, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert bool((a == b).all())


# pycocotools, as above.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("num_masks", [0, 1, 7])
def test_every_form_of_masks_gives_them_back(
    benchmarks: dict[str, ModuleType], make_record: Callable[..., Record], num_masks: int
) -> None:
    masks = make_record(shape=(150, 270), num_masks=num_masks, seed=3).masks
    planes = masks.to_masks()
    rng = np.random.default_rng(0)
    drawn = list(benchmarks["windows"].draw_windows([masks.shape], 64, 5, rng))
    for form in benchmarks["mask_formats"].formats():
        held = form.encode(planes, masks)
        assert held.num_bytes > 0
        np.testing.assert_array_equal(form.decode(held), planes, err_msg=form.name)
        for window in drawn:
            wanted = masks.crop(window.y, window.x, 64, 64).to_masks()
            np.testing.assert_array_equal(form.crop(held, window), wanted, err_msg=form.name)


def test_the_bytes_of_masks_are_those_of_the_shard_less_its_pictures(
    benchmarks: dict[str, ModuleType], tmp_path: Path, make_store: Callable[..., MaskStore]
) -> None:
    store = make_store(tmp_path / "store", [(40, 56), (56, 40)], images_per_shard=2)
    files = [file for file in (store.root / "shards/000000").rglob("*") if file.is_file()]
    pictures = [file for file in files if {"clean", "degraded"} & set(file.parts)]
    held = benchmarks["ours"].mask_bytes(store.root)
    assert len(pictures) >= 4
    assert sum(held.values()) == sum(file.stat().st_size for file in set(files) - set(pictures))
    assert not {"clean", "degraded"} & held.keys()


def test_pictures_are_made_equal_and_their_masks_overlap(
    benchmarks: dict[str, ModuleType],
) -> None:
    pictures = benchmarks["pictures"]
    once, again = (pictures.make_records(3, (320, 180)) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one.degraded, other.degraded)
        np.testing.assert_array_equal(one.clean, other.clean)
        assert one.masks.equals(other.masks)
        assert one.masks.areas.all()
        assert one.clean.shape == (180, 320, 3)
    told = pictures.statistics(once)
    assert told["deepest"] >= 3
    assert all(
        atoms > masks for atoms, masks in zip(told["num_atoms"], told["num_masks"], strict=True)
    )


def test_real_masks_can_be_measured(benchmarks: dict[str, ModuleType], shared_data: Path) -> None:
    pictures = benchmarks["pictures"]
    (dog,) = pictures.Subjects(count=1, size=(1, 1), amg=(shared_data / "sam_masks/dog",)).load()
    assert (len(dog.masks), dog.clean.shape) == (66, (534, 800, 3))
    folder = shared_data / "rain/human_segmentations"
    (human,) = pictures.Subjects(count=1, size=(240, 160), segmentations=folder).load()
    assert len(human.masks) > 5
    assert human.clean.shape == (160, 240, 3)


def test_folders_without_masks_are_named(benchmarks: dict[str, ModuleType], tmp_path: Path) -> None:
    pictures = benchmarks["pictures"]
    with pytest.raises(LayoutError, match=r"0 pictures and 0 metadata\.csv"):
        pictures.read_amg(tmp_path)
    with pytest.raises(LayoutError, match=r"has no \.npz files"):
        pictures.read_segmentations(tmp_path, 1, (8, 8))
    np.savez(tmp_path / "a.npz", labels=np.zeros((1, 4, 4)))
    with pytest.raises(LayoutError, match=r"a\.npz has no readable array `segmentations`"):
        pictures.read_segmentations(tmp_path, 1, (8, 8))


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_dropped_files_are_read_from_the_disk_again(
    benchmarks: dict[str, ModuleType], tmp_path: Path
) -> None:
    cache = benchmarks["page_cache"]
    file = tmp_path / "content"
    file.write_bytes(np.random.default_rng(0).bytes(2**20))
    assert cache.cached_share(tmp_path) == 1
    cache.drop(tmp_path)
    if cache.cached_share(tmp_path) > 0:
        pytest.skip("the file system of the temporary folder is in memory")
    assert cache.cold_run(file.read_bytes).num_bytes >= 2**20
    assert cache.cached_share(tmp_path) == 1


def test_work_is_timed_in_turn(benchmarks: dict[str, ModuleType]) -> None:
    done: list[str] = []
    works = {name: lambda name=name: done.append(name) for name in "ab"}
    times = benchmarks["rounds"].time_in_turn(works, runs=2)
    assert done == ["a", "b"] * 3
    assert all(0 <= each.least_s <= each.median_s <= each.most_s for each in times.values())


def test_both_engines_keep_the_same_masks_of_a_scene(benchmarks: dict[str, ModuleType]) -> None:
    run(benchmarks["everything"], *TINY_SAM, "--runs", "1", "--only", "post")
    record = json.loads((benchmarks["measure"].RESULTS / "everything.json").read_text())
    masks = record["masks"]
    assert masks["candidates"] == 4 * 4 * 3
    assert masks["candidates"] > masks["above_predicted_iou"] > masks["and_stable"] > 1
    assert masks["kept_by_official"] == masks["kept_by_samprior"] > 1
    assert masks["same_masks_in_order"]
    assert (masks["pixels_compared"], masks["pixels_different"]) == (
        masks["kept_by_official"] * 160 * 90,
        0,
    )


def test_without_a_scene_both_engines_get_what_the_network_says(
    benchmarks: dict[str, ModuleType],
) -> None:
    bench = tiny_bench(benchmarks).with_network_outputs()
    masks = benchmarks["outputs"].compare_masks(bench.without_encoder().without_decoder())
    assert masks["kept_by_official"] > 0
    assert masks["same_masks_in_order"]
    assert masks["pixels_different"] == 0


def test_an_engine_agrees_with_itself(benchmarks: dict[str, ModuleType]) -> None:
    told = benchmarks["outputs"].agreement(tiny_bench(benchmarks), {"precision": "float32"})
    assert told["masks"] == told["masks_in_float32"] > 0
    assert (told["share_above_iou_0.9"], told["mean_iou"]) == (1, 1)


def test_a_profile_replaces_the_rows(benchmarks: dict[str, ModuleType]) -> None:
    printed = run(benchmarks["everything"], *TINY_SAM, "--profile").output
    assert "aten::bmm" in printed
    assert not benchmarks["measure"].RESULTS.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_both_sides(benchmarks: dict[str, ModuleType]) -> None:
    script = benchmarks["everything"]
    (settings,) = script.engine_settings(["float32"], compile=False, images_at_once=2)
    for side in (None, settings):
        told = script.peak_of(tiny_subject(benchmarks), side)
        assert told["above_start_bytes"] == told["peak_bytes"] - told["start_bytes"] >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_counts_what_was_given_back(benchmarks: dict[str, ModuleType]) -> None:
    start, peak = benchmarks["measure"].peak_memory(lambda: np.ones(2**23))
    assert 60 * 2**20 < peak - start < 90 * 2**20


def test_the_start_of_the_command_is_timed(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks["cli_start"], "THEIRS", "import json")
    run(benchmarks["cli_start"], "--runs", "1")
    record = json.loads((benchmarks["measure"].RESULTS / "cli_start.json").read_text())
    assert [row["a"] for row in record["rows"]] == ["samprior --help"] * 2
    assert all(row["a_s"] > 0 and row["b_s"] > 0 for row in record["rows"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_all_processes_and_not_of_mapped_files(
    benchmarks: dict[str, ModuleType], tmp_path: Path
) -> None:
    memory = benchmarks["worker_memory"]
    before = memory.resident_bytes()
    content = np.ones(2**25, np.uint8)
    content.tofile(tmp_path / "file")
    assert memory.resident_bytes() - before == pytest.approx(2**25, rel=0.2)
    mapped = np.memmap(tmp_path / "file", mode="r")
    assert mapped.sum() == 2**25
    assert memory.resident_bytes() - before == pytest.approx(2**25, rel=0.2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_loaders_is_told_after_each_epoch(benchmarks: dict[str, ModuleType]) -> None:
    sizes = ("--size", "192", "160", "--crop-px", "64", "--pictures", "2")
    run(benchmarks["worker_memory"], *sizes, "--epochs", "3", "--runs", "1", "--workers", "1")
    record = json.loads((benchmarks["measure"].RESULTS / "worker_memory.json").read_text())
    for loader in record["loaders"]:
        (told,) = loader["runs"]
        assert len(told["epoch_bytes"]) == 3
        assert min(told["start_bytes"], *told["epoch_bytes"]) > 2**20


def tiny_bench(benchmarks: dict[str, ModuleType]) -> Any:  # noqa: ANN401
    return tiny_subject(benchmarks).load()


def tiny_subject(benchmarks: dict[str, ModuleType]) -> Any:  # noqa: ANN401
    photo = benchmarks["sides"].resized(benchmarks["measure"].photographs()[0], (160, 90))
    return benchmarks["sides"].Subject(
        model="tiny",
        checkpoint=None,
        photo=photo,
        points_per_side=6,
        points_per_batch=64,
        device="cpu",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_and_the_driver_of_a_job_are_measured(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # the script would leave it behind
    printed = run(benchmarks["job_scale"], "--quick").output
    results = benchmarks["measure"].RESULTS
    workers, driver = (
        json.loads((results / f"job_{name}.json").read_text()) for name in ("workers", "driver")
    )
    assert [row["workers"] for row in workers["rows"]] == [1, 2]
    assert [row["images"] for row in workers["rows"]] == [4, 8]
    # Sleep is the least that the images take, whatever the machine does.
    assert all(0 < row["share of waiting"] <= 1 for row in workers["rows"])
    phases = [*benchmarks["job_scale"].PHASES, "receipts on disk"]
    assert [row["phase"] for row in driver["rows"]] == phases * 3
    assert {(row["phase"], row["of"]) for row in driver["laws"]} == {
        *((phase, "bytes") for phase in phases),
        *((phase, "CPU s") for phase in phases[:-1]),
    }
    assert {row["images"] for row in driver["by_laws"]} == {10**4, 10**6, 10**8}
    assert "| receipts on disk |" in printed


def test_laws_are_found_and_have_no_part_below_0(benchmarks: dict[str, ModuleType]) -> None:
    sizes = ((10, 1), (100, 10), (100, 50), (1000, 100))
    rows = [{"images": n, "shards": s, "bytes": 7.0 + 3 * n + 2 * s} for n, s in sizes]
    found = benchmarks["laws"].law(rows, "bytes")
    wanted = {"fixed": 7, "per image": 3, "per shard": 2, "worst error": 0}
    assert found == pytest.approx(wanted, abs=1e-6)
    falling = [{"images": n, "shards": s, "bytes": 5000.0 - n} for n, s in sizes]
    assert benchmarks["laws"].law(falling, "bytes")["per image"] == 0


def test_the_ratio_is_the_second_over_the_first(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = benchmarks["measure"]
    # Uncounted runs don't look at the clock; then a takes 1, 1, 2 seconds and b 3, 5, 4.
    clock = iter(np.cumsum([0, 1, 0, 3, 0, 1, 0, 5, 0, 2, 0, 4]).tolist())
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    row = measure.compare("a step", lambda: None, "two steps", lambda: None, runs=3)
    assert (row.a_s, row.b_s, row.b_over_a, row.spread) == (1, 4, 3, (2, 5))
    assert row.sentence.startswith("two steps takes 3.00 times as long as a step (2.00 to 5.00")
