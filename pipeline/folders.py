"""Walk a dataset folder once, and guess which folder was meant when it was the wrong one."""

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from samprior.pipeline.layouts import Layout, compile_side, split_suffix
from samprior.storage.errors import LayoutError, UsageError

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test", "testing")
"""Folder names that are taken for splits."""

_NUM_NAMED = 5
"""Names that a message gives before it only counts."""
_NUM_LEVELS_UP = 3
_NUM_CHILDREN = 50
"""Sub-folders that are looked into for a hint; a hint must not cost a walk of the whole disk."""


def existing_folder(root: Path) -> Path:
    """The folder `root`, resolved; LayoutError when there is none."""
    if not root.exists():
        above = next(parent for parent in root.absolute().parents if parent.exists())
        raise LayoutError(f"{root} does not exist; {above} holds {named(subfolders(above))}")
    if not root.is_dir():
        raise LayoutError(f"{root} is a file; give the folder of the dataset, unpacked")
    return root.resolve()


def split_folder(
    root: Path, split: str | None, *, layouts: Sequence[Layout], by_pattern: bool
) -> tuple[Path, str | None]:
    """The folder to search and the split it is; decides by the names of the folders alone.

    Raises:
        UsageError: a split that is no relative path.
        LayoutError: a split that isn't there, or none given where there are several.
    """
    folders = subfolders(root)
    if split is not None:
        path = PurePosixPath(split)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise UsageError(f"split {split!r} must be the name of a folder in {root}")
        if not (root / path).is_dir():
            hint = better_root(root, layouts, split=split)
            raise LayoutError(f"{root} has no folder {split}/; it holds {named(folders)}{hint}")
        return root / path, str(path)
    splits = [folder for folder in folders if folder in SPLIT_NAMES]
    if by_pattern or not splits:
        return root, None
    if len(folders) > 1:
        raise LayoutError(
            f"{root} holds {named(folders)}; say which split to take, such as --split {splits[0]}"
        )
    return root / splits[0], splits[0]


def find_images(base: Path, starts: Collection[str] = ("",), *, inside: Path) -> list[str]:
    """Image files below `base`, as sorted POSIX paths relative to it; each folder is read once.

    Hidden files and folders, other suffixes and whatever is no regular file are left out.

    Args:
        base: the folder to walk, absolute.
        starts: folders relative to `base` that hold all that is wanted; missing ones are empty.
        inside: resolved folder that symbolic links may not leave.

    Raises:
        LayoutError: a folder that can't be read, or a link that is broken, leads out of
            `inside` or back to a folder above it.
    """
    files: list[str] = []
    for start in sorted(starts):
        covered = any(
            other != start and (other == "" or start.startswith(f"{other}/")) for other in starts
        )
        folder = base / start
        if covered or not folder.is_dir():
            continue
        real = os.path.realpath(folder)
        _refuse_bad_link(str(folder), real, inside=str(inside))
        files += _walk(str(folder), prefix=f"{start}/" if start else "", real=real, inside=inside)
    return sorted(files)


def refuse_links_out(files: Iterable[Path], *, inside: Path) -> None:
    """Raise LayoutError if links lead from one of the files, or its folders, out of `inside`."""
    base, real_of = os.path.realpath(inside), cache(os.path.realpath)
    for file in files:
        folder = real_of(file.parent)
        real = os.path.realpath(file) if file.is_symlink() else f"{folder}/{file.name}"
        _refuse_leaving(str(file), real, inside=base)


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    return sorted(entry.name for entry in _visible(folder) if _is_folder(entry))


def better_root(root: Path, layouts: Sequence[Layout], *, split: str | None = None) -> str:
    """A hint ". Try --root ..." when a folder above or below `root` has the layout, else ""."""
    for folder in (root, *root.parents[:_NUM_LEVELS_UP]):
        if _looks_right(folder, layouts) and (folder != root or split is not None):
            if folder.name in SPLIT_NAMES:
                return f". Try --root {folder.parent} --split {folder.name}"
            return f". Try --root {folder} without --split" if split else f". Try --root {folder}"
    for name in subfolders(root)[:_NUM_CHILDREN]:
        child = root / name
        if split is not None and (child / split).is_dir():
            return f". Try --root {child} --split {split}"
        if split is None and _looks_right(child, layouts):
            return f". Try --root {child}"
        splits = [one for one in SPLIT_NAMES if _looks_right(child / one, layouts)]
        if splits:
            return f". Try --root {child} --split {' or '.join(splits)}"
    return ""


def counted(number: int, noun: str) -> str:
    """ "1 pair", "2 pairs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def named(names: Sequence[str], *, separator: str = ", ") -> str:
    """The first few of some names, and how many more there are."""
    if not names:
        return "nothing"
    more = len(names) - _NUM_NAMED
    text = separator.join(names[:_NUM_NAMED])
    return f"{text} and {more} more" if more > 0 else text


def _walk(folder: str, *, prefix: str, real: str, inside: Path) -> Iterator[str]:
    # Folders to read: path, path from the base, and the real folders it lies in.
    waiting: list[tuple[str, str, tuple[str, ...]]] = [(folder, prefix, (real,))]
    while waiting:
        folder, prefix, trail = waiting.pop()
        for entry in _visible(folder):
            is_folder = _is_folder(entry)
            if not is_folder and not split_suffix(entry.name)[1]:
                continue
            real = f"{trail[-1]}/{entry.name}"
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                _refuse_bad_link(entry.path, real, inside=str(inside), trail=trail)
            if is_folder:
                waiting.append((entry.path, f"{prefix}{entry.name}/", (*trail, real)))
            elif entry.is_file():
                yield f"{prefix}{entry.name}"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Plain entries come with their kind; only links cost a look at the disk. A link to itself
    # makes entry.is_dir() raise, Path.is_dir() False.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise LayoutError(f"{folder} can't be read ({error.strerror})") from error


def _refuse_bad_link(path: str, real: str, *, inside: str, trail: Sequence[str] = ()) -> None:
    _refuse_leaving(path, real, inside=inside)
    if real in trail:
        raise LayoutError(f"{path} is a link back up to {real}; remove it")
    if not Path(real).exists():
        raise LayoutError(f"{path} is a broken link to {real}; remove it")


def _refuse_leaving(path: str, real: str, *, inside: str) -> None:
    if real != inside and not real.startswith(inside.rstrip("/") + "/"):
        raise LayoutError(
            f"{path} is a link to {real}, outside of {inside}; give the real folder in its place, "
            "or copy the files"
        )


def _looks_right(folder: Path, layouts: Sequence[Layout]) -> bool:
    """Whether the two sides' folders, such as blur and sharp, lie where a layout wants them."""
    for layout in layouts:
        markers = (compile_side(layout.degraded).marker, compile_side(layout.clean).marker)
        if not all(markers):
            continue
        homes = [folder]
        if layout.degraded.startswith("{sequence}/"):
            homes = _children(folder)
        if any(all((home / marker).is_dir() for marker in markers) for home in homes):
            return True
    return False


def _children(folder: Path) -> list[Path]:
    if not os.access(folder, os.R_OK | os.X_OK):
        return []
    return [folder / name for name in subfolders(folder)[:_NUM_CHILDREN]]
