"""Find the degraded/clean pairs of a dataset folder, or say what is missing and where it looked.

    dataset = find_dataset("gopro", "GOPRO_Large", split="train")
    dataset.pairs[0].key   # "GOPR0372_07_00/000047"

Pairs come sorted by key, in plain string order. Nothing is decoded; `check_pairs` reads headers.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from samprior.pipeline.folders import (
    SPLIT_NAMES,
    better_root,
    counted,
    existing_folder,
    find_images,
    named,
    split_folder,
)
from samprior.pipeline.layouts import (
    LAYOUTS,
    Layout,
    Match,
    compile_side,
    layout_of_patterns,
    match_best,
)
from samprior.storage.choices import check_choice
from samprior.storage.errors import ImageError, LayoutError, UsageError
from samprior.storage.images import image_size

_ODD_CHARACTERS = re.compile(r"[^\w/-]")
_NUM_SAMPLED = 5
"""Pairs whose headers `describe` reads."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One degraded picture and its clean side."""

    key: str
    """Relative path without suffix, "/" between folders; letters, digits, "_" and "-" only."""
    degraded: Path
    clean: Path


@dataclass(frozen=True)
class BadPair:
    """A pair that can't be used, and why."""

    key: str
    files: tuple[Path, ...]
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The pairs of one split of a dataset."""

    name: str
    root: Path
    """The folder that was given, absolute."""
    split: str | None
    pairs: tuple[Pair, ...]
    """Sorted by key."""
    layout: str
    """Which variant of the dataset's layouts the pairs have."""

    def describe(self) -> str:
        """One line such as "2103 pairs in 22 sequences, 1280x720" (width x height).

        Sizes come from the headers of a few evenly spaced pairs.
        """
        num_folders = len({pair.key.rpartition("/")[0] for pair in self.pairs})
        noun = "sequence" if self.name == "gopro" else "folder"
        text = counted(len(self.pairs), "pair")
        if noun == "sequence" or num_folders > 1:
            text += f" in {counted(num_folders, noun)}"
        return f"{text}, {self._sizes()}"

    @property
    def smallest_px(self) -> int | None:
        """Smallest side by the headers of a few evenly spaced pairs; None if none can be read."""
        sizes = [size for size in self._headers if not isinstance(size, str)]
        return min((min(size) for size in sizes), default=None)

    @cached_property
    def _headers(self) -> list[tuple[int, int] | str]:
        num_sampled = min(_NUM_SAMPLED, len(self.pairs))
        steps = max(num_sampled - 1, 1)
        sampled = [self.pairs[i * (len(self.pairs) - 1) // steps] for i in range(num_sampled)]
        return [_header(pair.clean) for pair in sampled]

    def _sizes(self) -> str:
        headers = self._headers
        num_sampled = len(headers)
        sizes = sorted({size for size in headers if not isinstance(size, str)}, key=_area)
        faults = [fault for fault in headers if isinstance(fault, str)]
        text = " to ".join(_size_text(size) for size in dict.fromkeys((*sizes[:1], *sizes[-1:])))
        if len(sizes) > 1:
            text += f" (headers of {num_sampled} of {counted(len(self.pairs), 'pair')} read)"
        return "; ".join(part for part in (text, *faults) if part)


_ADVICE = (
    ". Name both sides with --degraded-pattern and --clean-pattern",
    ". Mend the patterns: what differs between the two names of a pair stands outside {key}, as in "
    "--degraded-pattern 'noisy/{key}_noisy.png' --clean-pattern 'clean/{key}_gt.png'",
)
"""What to do where no two files are a pair: in the known layouts, and by patterns."""


def find_dataset(
    name: str,
    root: Path | str,
    *,
    split: str | None = None,
    variant: str | None = None,
    degraded_pattern: str | None = None,
    clean_pattern: str | None = None,
) -> Dataset:
    """Find the pairs of dataset `name` ("gopro", "sensenoise", "rain" or "folder") under `root`.

    Args:
        name: which layouts to try, see `samprior.pipeline.layouts.LAYOUTS`.
        root: the dataset's folder, the one that holds the splits if there are any.
        split: folder below `root` such as "train" or "test/Rain100L". None takes `root` itself,
            or its only split; with several splits it is an error.
        variant: name of one layout, such as "blur_gamma"; None detects it.
        degraded_pattern: where the degraded files are, relative to the split's folder: a folder,
            or a pattern with one {key}, such as "noisy/{key}.png"; {key} may span folders.
        clean_pattern: the same for the clean files, such as "clean/{key}_gt.png". The two
            patterns go together and replace the dataset's own layouts.

    Raises:
        UsageError: an unknown name or variant, or a pattern that can't be used.
        LayoutError: a missing folder, files without partner, equal keys, several layouts or
            splits at once, links that leave `root`; the message names the files.
    """
    layouts = _layouts_of(name, variant, degraded_pattern, clean_pattern)
    folder = existing_folder(Path(root))
    by_pattern = degraded_pattern is not None
    base, split = split_folder(folder, split, layouts=layouts, by_pattern=by_pattern)
    starts = {compile_side(side).start for one in layouts for side in (one.degraded, one.clean)}
    files = find_images(base, starts, inside=folder)
    match, rivals = match_best(layouts, files)
    _require_whole(
        match, rivals, name=name, base=base, files=files, layouts=layouts, by_pattern=by_pattern
    )
    pairs = keyed_pairs(match.pairs, base)
    if split is None and not by_pattern:
        _require_one_split(pairs, folder)
    return Dataset(name=name, root=folder, split=split, pairs=pairs, layout=match.layout.name)


def check_pairs(
    dataset: Dataset, *, progress: Callable[[int, int], None] | None = None
) -> list[BadPair]:
    """Read the headers of all files; return the pairs that can't be used, sorted by key.

    Bad is a file that is empty or has no readable header, and a pair of two sizes. Each file is
    read once. `progress(num_done, num_pairs)` is called after each pair.
    """
    headers: dict[Path, tuple[int, int] | str] = {}
    bad: list[BadPair] = []
    for num_done, pair in enumerate(dataset.pairs, start=1):
        for path in (pair.degraded, pair.clean):
            if path not in headers:
                headers[path] = _header(path)
        degraded, clean = headers[pair.degraded], headers[pair.clean]
        if isinstance(degraded, str) or isinstance(clean, str):
            both = ((pair.degraded, degraded), (pair.clean, clean))
            faults = {path: header for path, header in both if isinstance(header, str)}
            bad.append(BadPair(pair.key, tuple(faults), "; ".join(faults.values())))
        elif degraded != clean:
            sizes = f"degraded {_size_text(degraded)}, clean {_size_text(clean)}"
            bad.append(BadPair(pair.key, (pair.degraded, pair.clean), f"sizes differ: {sizes}"))
        if progress is not None:
            progress(num_done, len(dataset.pairs))
    return bad


def require_good_pairs(dataset: Dataset) -> None:
    """Raise LayoutError that names the pairs which `check_pairs` finds bad, if there are any."""
    bad = check_pairs(dataset)
    if bad:
        listed = named([f"{pair.key} ({pair.reason})" for pair in bad], separator="; ")
        raise LayoutError(
            f"{len(bad)} of {counted(len(dataset.pairs), 'pair')} in {dataset.root} can't be used: "
            f"{listed}. Replace or remove these files"
        )


def _layouts_of(
    name: str, variant: str | None, degraded: str | None, clean: str | None
) -> tuple[Layout, ...]:
    check_choice("dataset", name, LAYOUTS)
    if degraded is not None or clean is not None:
        if degraded is None or clean is None or variant is not None:
            raise UsageError(
                "patterns come in twos, one for the degraded and one for the clean files, and "
                "without a variant; such as noisy/{key}.png and clean/{key}_gt.png"
            )
        return (layout_of_patterns(degraded, clean),)
    if variant is None:
        return tuple(layout for layout in LAYOUTS[name] if not layout.on_request)
    chosen = tuple(layout for layout in LAYOUTS[name] if layout.name == variant)
    if not chosen:
        known = ", ".join(repr(layout.name) for layout in LAYOUTS[name])
        raise UsageError(f"{name} has no variant {variant!r}; it has {known}")
    return chosen


def _require_whole(
    match: Match,
    rivals: Sequence[Match],
    *,
    name: str,
    base: Path,
    files: Sequence[str],
    layouts: Sequence[Layout],
    by_pattern: bool,
) -> None:
    """Raise LayoutError unless the match is the only one and leaves no file over."""
    if rivals:
        found = named([f"{len(one.pairs)} of {one.layout.name!r}" for one in (match, *rivals)])
        raise LayoutError(
            f"{base} holds pairs of several layouts: {found}. Choose one with --variant",
            num_pairs=len(match.pairs),
        )
    if match.num_files == 0:
        looked = ", ".join(one.text for one in layouts)
        images = counted(len(files), "image") + (f" ({named(files)})" if files else "")
        hint = better_root(base, layouts) or _ADVICE[by_pattern]
        raise LayoutError(
            f"{base} holds no {name} pairs: looked for {looked}; found {images}{hint}"
        )
    faults = []
    if match.lone_degraded:
        lone = sorted(match.lone_degraded)
        faults.append(
            f"{counted(len(lone), 'degraded file')} without clean side: {named(lone)}; "
            f"{lone[0]} needs {match.layout.partner(lone[0])}"
        )
    if match.lone_clean:
        lone = sorted(match.lone_clean)
        faults.append(f"{counted(len(lone), 'clean file')} without degraded side: {named(lone)}")
    if match.twins:
        twins = [" and ".join(twin) for twin in sorted(match.twins)]
        faults.append(f"{counted(len(twins), 'name')} used twice: {named(twins)}")
    if match.strays:
        strays = sorted(match.strays)
        faults.append(
            f"{counted(len(strays), 'image')} of no pair beside the pairs: {named(strays)}"
        )
    if faults:
        # Where nothing pairs up it is the naming that is wrong, not the files.
        advice = ". Complete the pairs or move these files away"
        if by_pattern and not match.pairs:
            advice = _ADVICE[True]
        hint = "" if match.pairs else better_root(base, layouts)
        raise LayoutError(
            f"{base}, read as {match.layout.name!r}, has {'; '.join(faults)}{advice}{hint}",
            num_pairs=len(match.pairs),
            num_degraded=len(match.lone_degraded),
        )


def keyed_pairs(files: Iterable[tuple[str, str, str]], base: Path) -> tuple[Pair, ...]:
    """Pairs, sorted by key, from (path without suffix, degraded file, clean file) below `base`.

    Raises:
        LayoutError: two names have one key; the message names the files.
    """
    pairs: dict[str, Pair] = {}
    equal = []
    for name, degraded, clean in sorted(files):
        # Composed form first: on some file systems "é" is a letter and an accent.
        key = _ODD_CHARACTERS.sub("_", unicodedata.normalize("NFC", name))
        if key in pairs:
            equal.append(f"{pairs[key].degraded.relative_to(base)} and {degraded} ({key})")
        pairs[key] = Pair(key, base / degraded, base / clean)
    if equal:
        raise LayoutError(
            f"{base} has files whose keys are equal, as a key has no suffix and has _ for dots, "
            f"blanks and other odd characters: {named(equal)}. Rename one of each"
        )
    return tuple(pairs[key] for key in sorted(pairs))


def _require_one_split(pairs: Sequence[Pair], root: Path) -> None:
    """Raise LayoutError if the pairs lie in split folders further down, which would mix them."""
    homes = {(pair.degraded.parent, pair.clean.parent) for pair in pairs}
    above = {Path(os.path.commonpath(home)).relative_to(root) for home in homes}
    splits = {
        Path(*folder.parts[: depth + 1])
        for folder in above
        for depth, part in enumerate(folder.parts)
        if part in SPLIT_NAMES
    }
    if splits:
        first = min(splits)
        raise LayoutError(
            f"{root} is above the folder of the splits: the pairs lie in "
            f"{named(sorted(map(str, splits)))}. Try --root {(root / first).parent} "
            f"--split {first.name}",
            num_pairs=len(pairs),
        )


def _header(path: Path) -> tuple[int, int] | str:
    try:
        return image_size(path)
    except ImageError as error:
        return str(error)


def _area(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] * size[1], size[1]


def _size_text(size: tuple[int, int]) -> str:
    height, width = size
    return f"{width}x{height}"
