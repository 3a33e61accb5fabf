"""Dataset layouts as data: which file is the degraded side of a pair, and which the clean one.

A template says how the files of one side are named, relative to the folder of the split and
without the image suffix (a template that does end in one takes only that suffix):

    {folder}/    any folders, or none        {sequence}/  one folder or more
    {name}       a file name                 {key}        a file name with any folders before it
    {copy}       a number: several degraded files share one clean file

Two files make a pair when all but `{copy}` is the same on both sides. Everything here is pure:
lists of relative paths in, matches out. Work grows linearly with the number of files.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import PurePosixPath

from samprior.storage.errors import UsageError
from samprior.storage.images import IMAGE_SUFFIXES

_PARTS = {
    "{folder}/": r"(?:(?P<folder>.+)/)?",
    "{sequence}/": r"(?P<sequence>.+)/",
    "{name}": r"(?P<name>[^/]+)",
    "{key}": r"(?P<key>.+)",
    "{copy}": r"(?P<copy>\d+)",
}
_SPLIT_AT = re.compile("(" + "|".join(re.escape(part) for part in _PARTS) + ")")


@dataclass(frozen=True)
class Side:
    """One template, ready to match; made by `compile_side`."""

    pattern: re.Pattern[str]
    suffix: str
    """Image suffix in lower case that a file must have; empty = any."""
    num_literals: int
    """Characters outside placeholders; of two templates that fit a file, more of them wins."""
    start: str
    """Folder that all files of this side are in, before the first placeholder; "" = the root."""
    marker: str
    """Folders spelled out right before the file name, such as "blur"; "" = none."""

    def match(self, stem: str, suffix: str) -> re.Match[str] | None:
        """Match a relative path that was cut into stem and lower-case suffix."""
        # Most files lie in no folder of a layout that is not theirs: spare them the expression.
        if (self.suffix and suffix != self.suffix) or self.marker not in stem:
            return None
        return self.pattern.fullmatch(stem)


@dataclass(frozen=True)
class Layout:
    """A named way to lay out pairs."""

    name: str
    degraded: str
    clean: str
    ignored: str = ""
    """Template of files that lie beside the pairs and are no part of them; "" = none."""
    on_request: bool = False
    """True = never detected, used only when asked for by name."""
    strict: bool = True
    """True = an image beside the pairs that fits no template is an error, not overlooked."""

    @property
    def text(self) -> str:
        """The two templates in short, for messages."""
        return " with ".join(side.replace("{folder}/", "") for side in (self.degraded, self.clean))

    def partner(self, file: str) -> str:
        """The clean file that the degraded `file` needs, with * for any suffix, for messages."""
        found = compile_side(self.degraded).match(*split_suffix(file))
        assert found is not None, f"{file} is no degraded file of {self.name}"
        clean = self.clean
        for part, value in found.groupdict(default="").items():
            clean = clean.replace(f"{{{part}}}", value)
        return clean.removeprefix("/") + ("" if compile_side(self.clean).suffix else ".*")


def _folders(degraded: str, clean: str) -> Layout:
    return Layout(
        name=f"{degraded}-{clean}",
        degraded=f"{{folder}}/{degraded}/{{key}}",
        clean=f"{{folder}}/{clean}/{{key}}",
    )


def _endings(degraded: str, clean: str) -> Layout:
    return Layout(
        name=f"_{degraded}-_{clean}",
        degraded=f"{{folder}}/{{name}}_{degraded}",
        clean=f"{{folder}}/{{name}}_{clean}",
    )


def _gopro(blur: str, *, on_request: bool) -> Layout:
    return Layout(
        name=blur,
        degraded=f"{{sequence}}/{blur}/{{name}}",
        clean="{sequence}/sharp/{name}",
        on_request=on_request,
    )


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    # GOPRO_Large: <split>/<sequence>/{blur,blur_gamma,sharp}/NNNNNN.png. Published scores use blur.
    "gopro": (_gopro("blur", on_request=False), _gopro("blur_gamma", on_request=True)),
    # Camera noise has no one layout: two folders, or two endings (PolyU: _real and _mean).
    "sensenoise": (
        _folders("noisy", "clean"),
        _folders("noisy", "gt"),
        _folders("input", "gt"),
        _folders("input", "target"),
        _endings("noisy", "clean"),
        _endings("real", "mean"),
        Layout(
            name="noisy-clean with endings",
            degraded="{folder}/noisy/{name}_noisy",
            clean="{folder}/clean/{name}_clean",
        ),
    ),
    "rain": (
        # Rain13K and its test sets.
        _folders("input", "target"),
        # Rain100L and Rain100H in the shapes that are passed round: plain; JORDER's rain/X2 with
        # names like 001x2; with rain- and norain- names; and the archive with all in one folder.
        _folders("rain", "norain"),
        Layout("X2", "{folder}/rain/X2/{name}x2", "{folder}/norain/{name}"),
        Layout("x2 names", "{folder}/rain/{name}x2", "{folder}/norain/{name}"),
        Layout("rain-N in rain", "{folder}/rain/rain-{name}", "{folder}/norain/norain-{name}"),
        Layout("rain-N in rainy", "{folder}/rainy/rain-{name}", "{folder}/norain-{name}"),
        Layout(
            name="rain-N",
            degraded="{folder}/rain-{name}",
            clean="{folder}/norain-{name}",
            ignored="{folder}/rainregion-{name}",
        ),
        # Rain1400 (DDN): 14 rainy versions of each photograph.
        Layout(
            name="rainy_image-ground_truth",
            degraded="{folder}/rainy_image/{name}_{copy}",
            clean="{folder}/ground_truth/{name}",
        ),
    ),
    "folder": (_folders("degraded", "clean"), _folders("input", "target")),
}
"""The layouts that are tried for each dataset name."""


@dataclass(frozen=True)
class Match:
    """What one layout finds among a list of files."""

    layout: Layout
    pairs: tuple[tuple[str, str, str], ...]
    """(name, degraded file, clean file); the name is the key before odd characters are mapped."""
    lone_degraded: tuple[str, ...]
    lone_clean: tuple[str, ...]
    twins: tuple[tuple[str, str], ...]
    """Two files of one side with the same name, such as 1.png and 1.jpg."""
    strays: tuple[str, ...]
    """Images that lie in a folder of paired files and fit neither template."""

    @cached_property
    def num_files(self) -> int:
        """Files that fit a template of the layout, paired or not."""
        paired = {file for _, degraded, clean in self.pairs for file in (degraded, clean)}
        return len(paired) + len(self.lone_degraded) + len(self.lone_clean)


def split_suffix(file: str) -> tuple[str, str]:
    """Cut "a/b.c.PNG" into "a/b.c" and ".png"; files without image suffix keep all as stem."""
    stem, dot, ending = file.rpartition(".")
    suffix = f"{dot}{ending.lower()}"
    return (stem, suffix) if stem and suffix in IMAGE_SUFFIXES else (file, "")


@lru_cache(maxsize=256)
def compile_side(template: str) -> Side:
    """Make a template ready to match."""
    stem, suffix = split_suffix(template)
    pieces = _SPLIT_AT.split(stem)
    pattern = "".join(_PARTS.get(piece) or re.escape(piece) for piece in pieces)
    file_name_at = stem.rfind("/") + 1
    folders = _SPLIT_AT.split(stem[:file_name_at])
    return Side(
        pattern=re.compile(pattern, re.DOTALL),
        suffix=suffix,
        num_literals=sum(len(piece) for piece in pieces if piece not in _PARTS),
        start=pieces[0].rpartition("/")[0] if len(pieces) > 1 else "",
        marker=folders[-1].strip("/"),
    )


def layout_of_patterns(degraded: str, clean: str) -> Layout:
    """The layout of two patterns of a user: folders, or paths with one {key}.

    Raises:
        UsageError: a pattern that is no relative path, has other wildcards, or is both sides'.
    """
    templates = []
    for pattern in (degraded, clean):
        path = PurePosixPath(pattern)
        if path.is_absolute() or ".." in path.parts or "\\" in pattern or not path.parts:
            raise UsageError(
                f"pattern {pattern!r} must be relative to the root, with / and without .., such as "
                "noisy/{key}.png"
            )
        if pattern.count("{key}") > 1 or re.search(r"[{}*?]", pattern.replace("{key}", "")):
            raise UsageError(
                f"pattern {pattern!r} must hold one {{key}} and no other {{}}, * or ?; such as "
                "noisy/{key}.png"
            )
        templates.append(str(path if "{key}" in pattern else path / "{key}"))
    if templates[0] == templates[1]:
        raise UsageError(f"pattern {degraded!r} is given for both sides; they must differ")
    return Layout(" + ".join(templates), templates[0], templates[1], strict=False)


def match_layout(layout: Layout, files: Iterable[tuple[str, str, str]]) -> Match:
    """Pair images by one layout; each is its relative POSIX path, whole and cut in two."""
    degraded_side, clean_side = compile_side(layout.degraded), compile_side(layout.clean)
    clean_first = clean_side.num_literals > degraded_side.num_literals
    degraded: dict[str, tuple[str, str]] = {}
    clean: dict[str, str] = {}
    twins: list[tuple[str, str]] = []
    others: list[str] = []
    for file, stem, suffix in files:
        as_degraded = degraded_side.match(stem, suffix)
        as_clean = clean_side.match(stem, suffix)
        if as_clean and (clean_first or not as_degraded):
            name = _name(as_clean)
            if clean.setdefault(name, file) != file:
                twins.append((clean[name], file))
        elif as_degraded:
            partner = _name(as_degraded)
            copy = as_degraded.groupdict().get("copy")
            name = partner if copy is None else f"{partner}_{copy}"
            if degraded.setdefault(name, (file, partner))[0] != file:
                twins.append((degraded[name][0], file))
        else:
            others.append(file)
    return _assemble(layout, degraded=degraded, clean=clean, twins=twins, others=others)


def match_best(layouts: Sequence[Layout], files: Sequence[str]) -> tuple[Match, list[Match]]:
    """The layout that pairs most files, and the others that find pairs which it does not.

    Without any pair it is the layout that most files fit one side of.
    """
    cut = [(file, *split_suffix(file)) for file in files]
    matches = [match_layout(layout, cut) for layout in layouts]
    best = max(matches, key=lambda match: (len(match.pairs), match.num_files))
    known = {pair[1:] for pair in best.pairs}
    rivals = [match for match in matches if any(pair[1:] not in known for pair in match.pairs)]
    return best, rivals


def _name(found: re.Match[str]) -> str:
    groups = found.groupdict()
    parts = (groups.get(part) for part in ("folder", "sequence", "key", "name"))
    return "/".join(part for part in parts if part)


def _assemble(
    layout: Layout,
    *,
    degraded: dict[str, tuple[str, str]],
    clean: dict[str, str],
    twins: list[tuple[str, str]],
    others: list[str],
) -> Match:
    pairs = [(name, file, clean[key]) for name, (file, key) in degraded.items() if key in clean]
    used = {key for _, key in degraded.values()}
    strays: list[str] = []
    if layout.strict and others:
        homes = {file.rpartition("/")[0] for pair in pairs for file in pair[1:]}
        beside = (file for file in others if file.rpartition("/")[0] in homes)
        strays = [file for file in beside if not _is_ignored(layout, file)]
    return Match(
        layout=layout,
        pairs=tuple(pairs),
        lone_degraded=tuple(file for file, key in degraded.values() if key not in clean),
        lone_clean=tuple(file for key, file in clean.items() if key not in used),
        twins=tuple(twins),
        strays=tuple(strays),
    )


def _is_ignored(layout: Layout, file: str) -> bool:
    stem, suffix = split_suffix(file)
    return bool(layout.ignored) and bool(compile_side(layout.ignored).match(stem, suffix))
