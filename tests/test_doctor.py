"""`samprior doctor`: true findings, and what to do about each that is bad."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import chain
from pathlib import Path

import pytest

from samprior.pipeline import health
from samprior.pipeline.checkpoints import OfficialCheckpoint
from samprior.pipeline.health import EXTRAS, Finding, examine
from samprior.storage.errors import StoreError

Samprior = Callable[..., tuple[int, str, str]]


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_machine_that_is_well(samprior: Samprior, tmp_path: Path) -> None:
    findings = list(examine(quick=True, cache=tmp_path / "not" / "yet"))
    assert {"python", "library", "cpu", "memory", "gpu", "cache", "ray"} <= {
        finding.name for finding in findings
    }
    assert [finding for finding in findings if finding.level == "bad"] == []
    assert not (tmp_path / "not").exists()
    code, out, _ = samprior("doctor", "--quick")
    assert code == 0
    for word in ("Python", "torch", "segment-anything", "CPU", "cache", "vit_h", "ray"):
        assert word in out
    code, out, err = samprior("doctor", "--quick", "--json")
    assert code == 0
    assert json.loads(out)["ok"] is True
    assert err == ""


def test_what_is_missing_or_too_old_is_told_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, samprior: Samprior
) -> None:
    def told(name: str) -> str:
        if name == "zarr":
            raise metadata.PackageNotFoundError(name)
        return {"click": "1.0", "lpips": "0.0.1"}.get(name) or metadata.version(name)

    monkeypatch.setattr(health, "version", told)
    code, out, _ = samprior("doctor", "--quick")
    assert code == 1
    assert "NO   zarr is not installed" in out
    assert 'pip install "zarr>=' in out
    assert "NO   click 1.0, wanted" in out
    assert (
        'note lpips: not there or too old; only for evaluate --lpips\n       -> pip install "s'
        in out
    )


def test_libraries_that_are_broken_are_told_and_the_rest_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, samprior: Samprior
) -> None:
    """The usual case for a doctor: all is installed, and a library finds no driver."""

    def load(name: str) -> object:
        raise OSError(f"lib{name}.so: cannot open shared object file\nmore")

    monkeypatch.setattr(health.importlib, "import_module", load)
    findings = by_name(examine(quick=True))
    for library in ("torch", "torchvision"):
        assert findings[library].level == "bad"
        assert "cannot open shared object file" in findings[library].text
        assert "more" not in findings[library].text
        assert library in str(findings[library].remedy)
    assert findings["temporary files"].level == "ok"
    assert by_name(health._ray(quick=False))["ray"].level == "bad"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user to become another")
def test_a_cache_that_one_may_not_look_into_is_bad(tmp_path: Path) -> None:
    private = tmp_path / "private"
    (private / "cache").mkdir(parents=True)
    private.chmod(0o700)
    os.seteuid(65534)
    try:
        found = by_name(
            chain(
                [health._folder_finding("cache", private / "cache" / "x", needed_gb=0)],
                health._checkpoints(private / "cache", quick=True),
            )
        )
    finally:
        os.seteuid(0)
    assert found["cache"].level == "bad"
    assert "can't be written to" in found["cache"].text


def test_every_extra_for_users_is_known() -> None:
    named = set(metadata.metadata("samprior").get_all("Provides-Extra") or ())
    assert set(EXTRAS) <= named


def test_checkpoints_are_read(tmp_path: Path) -> None:
    content = b"weights"
    good = OfficialCheckpoint("good.pth", hashlib.sha256(content).hexdigest()[:6])
    known = {"vit_h": good, "vit_l": OfficialCheckpoint("bad.pth", "000000")}
    known["vit_b"] = OfficialCheckpoint("absent.pth", "111111")
    (tmp_path / "good.pth").write_bytes(content)
    (tmp_path / "bad.pth").write_bytes(content)
    (tmp_path / "absent.pth.part").write_bytes(b"0" * 10)
    found = by_name(health._checkpoints(tmp_path, quick=False, checkpoints=known))
    assert found["SAM vit_h"].level == "ok"
    assert "as published" in found["SAM vit_h"].text
    assert found["SAM vit_l"].level == "bad"
    assert found["SAM vit_l"].remedy == f"rm {tmp_path / 'bad.pth'}; precompute downloads it again"
    assert "goes on" in found["SAM vit_b"].text
    quick = by_name(health._checkpoints(tmp_path, quick=True, checkpoints=known))
    assert {finding.level for finding in quick.values()} == {"ok"}


def test_a_cache_that_is_no_folder_is_bad(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = by_name(examine(quick=True, cache=tmp_path / "file"))["cache"]
    assert found.level == "bad"
    assert "SAMPRIOR_CACHE" in str(found.remedy)


def test_a_ray_that_does_not_start_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise StoreError("Ray can't be started (no ports)")

    monkeypatch.setattr(health, "_ray_resources", refuse)
    found = by_name(health._ray(quick=False))["ray"]
    assert found.level == "bad"
    assert "--workers 0" in str(found.remedy)


def test_a_ray_that_does_not_come_up_in_time_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nMore of it.")

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = by_name(health._ray(quick=False))["ray"]
    assert found.level == "bad"
    assert "timed out" in found.text
    assert "More" not in found.text


@pytest.mark.slow
def test_ray_is_started_and_ended(samprior: Samprior) -> None:
    code, out, err = samprior("doctor")
    assert code == 0, err
    assert "a private Ray: starts, with" in out
