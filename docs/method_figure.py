"""Write docs/method.svg: what is made once, what each stage trains, and what ships.

python docs/method_figure.py

Nothing is computed, nothing is read: equal code writes equal bytes.
"""

from html import escape
from pathlib import Path

from drawing import Place, rect, sheet
from method_marks import (
    COLOURS,
    STYLE,
    arrow,
    box,
    cylinder,
    definitions,
    graph,
    loss,
    shown,
    text,
    wire,
)

FIGURE = Path(__file__).with_name("method.svg")
LABEL = (
    "Masks of the clean pictures are made once by SAM and kept in a store. The stages base, "
    "control, fusion and distill train networks; SPF and SGR read the masks. Network 1 alone ships."
)

SIZE = (900, 686)
_TOP, _BOTTOM = 16, 670
_ONCE, _TRAIN, _SHIP = (16, 188), (228, 500), (744, 140)  # columns: x and width
_LANE, _LANE_WIDTH = 236, 484  # x of the stages
_BASE, _FUSION, _DISTILL = 74, 242, 404  # y of the stages
_BUS = 216  # x of the wire that carries the masks

# How alike each pair of regions is, as the width of the line between them.
_RELATIONS = {"u": (2.6, 0.8, 1.8, 2.2, 0.8, 3.0), "v": (1.2, 2.6, 3.2, 0.8, 2.4, 1.2)}


def figure() -> str:
    """The whole SVG."""
    parts = [*definitions(), *_once(), *_training(), *_legend(), *_ship()]
    return sheet(SIZE, LABEL, style=STYLE, fill="#ffffff", parts=parts)


def _once() -> list[str]:
    x, width = _ONCE
    left, middle = x + 38, x + width / 2
    parts = [
        *_panel((x, _TOP, width, _BOTTOM - _TOP), 1, "Precompute", "samprior precompute"),
        text(middle, 92, "clean picture y", "small middle"),
        shown("y", (left, 100, 112, 83)),
        arrow("once", (middle, 187), (middle, 207)),
        *box((left, 209, 112, 38), "once", "SAM", "frozen"),
        arrow("once", (middle, 251), (middle, 271)),
        text(middle, 287, "masks M", "small middle"),
        shown("M", (left, 294, 112, 83)),
        arrow("once", (middle, 381), (middle, 401)),
        *cylinder((left, 404, 112, 74), "store"),
    ]
    notes = (
        ("Each picture once: no", "segmenter runs in the", "training loop."),
        ("Masks are privileged:", "nobody has y when a", "picture is restored."),
        ("--source gives other", "pictures to SAM."),
    )
    y = 508
    for note in notes:
        parts += [text(x + 18, y + 16 * k, line, "small") for k, line in enumerate(note)]
        y += 16 * len(note) + 8
    return parts


def _training() -> list[str]:
    x, width = _TRAIN
    parts = _panel((x, _TOP, width, _BOTTOM - _TOP), 2, "Train, in stages", "samprior train")
    parts += _plain_stage(_LANE, "base", "from pairs (x, y)", "where all others start")
    parts += _plain_stage(_LANE + 248, "control", "goes on, no masks", "as many steps as distill")
    return [*parts, *_fusion(), *_distill(), *_relations(), *_between_stages(), *_mask_wires()]


def _plain_stage(x: int, name: str, words: str, note: str) -> list[str]:
    y = _BASE
    return [
        *_stage((x, y, 236, 146), name, words),
        *_first_network(x, y - 14, "learns"),
        *_towards_truth(x, y + 90),
        arrow("loss", (x + 168, y + 107), (x + 191, y + 107), (x + 191, y + 80)),
        text(x + 14, y + 138, note, "small"),
    ]


def _fusion() -> list[str]:
    x, y = _LANE, _FUSION
    return [
        *_stage((x, y, _LANE_WIDTH, 140), "fusion", "(A): the teacher, SPF and network 2, learns"),
        *_first_network(x, y, "frozen"),
        *_teacher(x, y, "learns"),
        text(x + 14, y + 123, "F = SPF(sg(I_{1}), M)", "small"),
        *_towards_truth(x + 232, y + 101, "I_{2}"),
        arrow("loss", (x + 400, y + 118), (x + 447, y + 118), (x + 447, y + 94)),
    ]


def _distill() -> list[str]:
    x, y = _LANE, _DISTILL
    parts = [
        *_stage(
            (x, y, _LANE_WIDTH, 254), "distill", "(B): network 1 learns from y and the teacher"
        ),
        *_first_network(x, y, "learns"),
        *_teacher(x, y, "frozen"),
        *_towards_truth(x, y + 104),
        arrow("loss", (x + 168, y + 121), (x + 179, y + 121), (x + 179, y + 94)),
        wire("loss", (x + 433, y + 94), (x + 433, y + 121), (x + 374, y + 121)),
        *loss((x + 272, y + 109, 102, 24), "L_{SPD}(I_{1} ⇐ I_{2})"),
        arrow("loss", (x + 272, y + 121), (x + 203, y + 121), (x + 203, y + 94)),
    ]
    total = ("L_{recon}", "+ λ_{1} · L_{SPD}", "+ λ_{2} · L_{SGR}")
    parts += [text(x + 42, y + 174 + 21 * k, line) for k, line in enumerate(total)]
    return [*parts, text(x + 14, y + 174, "L =")]


def _towards_truth(x: int, y: int, image: str = "I_{1}") -> list[str]:
    """The clean picture and the loss against it."""
    return [
        shown("y", (x + 14, y, 46, 34)),
        text(x + 68, y + 21, "y"),
        *loss((x + 84, y + 5, 84, 24), f"L_{{recon}}({image}, y)"),
    ]


def _first_network(x: int, y: int, state: str) -> list[str]:
    """From the degraded picture to I1."""
    return [
        text(x + 37, y + 54, "x", "small middle"),
        shown("x", (x + 14, y + 58, 46, 34)),
        arrow("data", (x + 61, y + 75), (x + 75, y + 75)),
        *box((x + 76, y + 57, 76, 36), "ships", "network 1", state),
        arrow("data", (x + 153, y + 75), (x + 167, y + 75)),
        text(x + 191, y + 54, "I_{1}", "small middle"),
        shown("I1", (x + 168, y + 58, 46, 34)),
    ]


def _teacher(x: int, y: int, state: str) -> list[str]:
    """From I1 to I2."""
    return [
        text(x + 229, y + 70, "sg", "small middle"),
        arrow("data", (x + 215, y + 75), (x + 245, y + 75)),
        *box((x + 246, y + 57, 52, 36), "training", "SPF", state),
        text(x + 313, y + 70, "F", "small middle"),
        arrow("data", (x + 299, y + 75), (x + 329, y + 75)),
        *box((x + 330, y + 57, 76, 36), "training", "network 2", state),
        arrow("data", (x + 407, y + 75), (x + 423, y + 75)),
        text(x + 447, y + 54, "I_{2}", "small middle"),
        shown("I2", (x + 424, y + 58, 46, 34)),
    ]


def _relations() -> list[str]:
    """SGR: the regions of I1 and of I2, and how alike they are."""
    x, y = _LANE, _DISTILL
    left, right = x + 168, x + 396
    parts = []
    for place, middle, side in ((left, x + 191, "u"), (right, x + 447, "v")):
        parts += [
            arrow("data", (middle, y + 94), (middle, y + 141)),
            *box((middle - 26, y + 143, 52, 34), "training", "VGG", "frozen"),
            wire("data", (middle, y + 177), (middle, y + 188)),
            *graph((place, y + 188, 74, 54), _RELATIONS[side]),
        ]
    return [
        *parts,
        text(x + 319, y + 156, "relations between regions:", "small middle"),
        text(x + 319, y + 173, "u_{j} · u_{k} against v_{j} · v_{k}", "small middle"),
        text(left + 82, y + 200, "u", "small"),
        text(right - 14, y + 200, "v", "small"),
        wire("loss", (right, y + 207), (x + 349, y + 207)),
        *loss((x + 289, y + 195, 60, 24), "L_{SGR}"),
        arrow("loss", (x + 289, y + 207), (left + 76, y + 207)),
    ]


def _between_stages() -> list[str]:
    x = _LANE + 114
    return [
        arrow("ships", (_LANE + 237, _BASE + 61), (_LANE + 247, _BASE + 61)),
        arrow("ships", (x, _BASE + 147), (x, _FUSION - 1)),
        text(x + 10, _FUSION - 7, "network 1; network 2 starts as its copy", "small"),
        arrow("ships", (x, _FUSION + 141), (x, _DISTILL - 1)),
        text(x + 10, _DISTILL - 7, "network 1 as in base", "small"),
        arrow("training", (x + 176, _FUSION + 141), (x + 176, _DISTILL - 1)),
        text(x + 186, _DISTILL - 7, "SPF and network 2", "small"),
    ]


def _mask_wires() -> list[str]:
    """From the store to SPF, in both stages, and to SGR."""
    spf, regions = _LANE + 272, _DISTILL + 234
    parts = [
        wire("once", (167, _DISTILL + 36), (_BUS, _DISTILL + 36)),
        wire("once", (_BUS, _FUSION + 36), (_BUS, regions)),
        f'<circle cx="{_BUS}" cy="{_DISTILL + 36}" r="3" fill="{COLOURS["once"][0]}"/>',
    ]
    for y in (_FUSION, _DISTILL):
        parts += [
            arrow("once", (_BUS, y + 36), (spf, y + 36), (spf, y + 55)),
            text(spf + 8, y + 50, "M", "small"),
        ]
    return [
        *parts,
        arrow("once", (_BUS, regions), (_LANE + 166, regions)),
        arrow("once", (_LANE + 243, regions), (_LANE + 394, regions)),
        text(_LANE + 319, regions + 14, "M", "small middle"),
    ]


def _legend() -> list[str]:
    x, width = _SHIP
    left = x + 12
    parts = [
        rect((x, _TOP, width, _FUSION + 140 - _TOP), 'rx="8" fill="#f4f6f8"'),
        text(left, _TOP + 26, "Legend", "title"),
    ]
    y = _TOP + 46
    for kind, words in (
        ("ships", ("network 1:", "what ships")),
        ("training", ("exists only", "in training")),
        ("once", ("once, before", "training")),
    ):
        edge, fill = COLOURS[kind]
        parts.append(rect((left, y, 20, 20), f'rx="4" fill="{fill}" stroke="{edge}"'))
        parts += [text(left + 28, y + 9 + 15 * k, line, "small") for k, line in enumerate(words)]
        y += 44
    parts += [
        arrow("loss", (left + 21, y + 5), (left, y + 5)),
        rect((left, y + 74, 20, 20), 'rx="4" fill="none" stroke="#5b6876" stroke-dasharray="4 3"'),
        text(left + 3, y + 127, "sg", "small"),
    ]
    for meaning in (
        ("loss: pulls what", "it points at;", "the other side", "is fixed (⇐)"),
        ("frozen: does", "not learn here"),
        ("no gradient", "passes"),
    ):
        parts += [text(left + 28, y + 9 + 15 * k, line, "small") for k, line in enumerate(meaning)]
        y += 15 * len(meaning) + 14
    return parts


def _ship() -> list[str]:
    x, width = _SHIP
    middle, y = x + width / 2, _DISTILL
    parts = [
        *_panel((x, y, width, _BOTTOM - y), 3, "Ship", "samprior restore"),
        text(middle - 36, y + 84, "x", "small middle"),
        shown("x", (middle - 23, y + 62, 46, 34)),
        arrow("ships", (middle, y + 98), (middle, y + 114)),
        *box((middle - 44, y + 116, 88, 38), "ships", "network 1", "alone"),
        arrow("ships", (middle, y + 156), (middle, y + 172)),
        text(middle - 36, y + 196, "I_{1}", "small middle"),
        shown("I1", (middle - 23, y + 174, 46, 34)),
        arrow("ships", (_LANE + _LANE_WIDTH + 1, y + 135), (middle - 46, y + 135)),
    ]
    notes = ("No masks, no SPF,", "no network 2,", "no VGG")
    return parts + [
        text(middle, y + 225 + 15 * k, line, "small middle") for k, line in enumerate(notes)
    ]


def _panel(place: Place, number: int, title: str, command: str) -> list[str]:
    x, y, _, _ = place
    return [
        rect(place, 'rx="8" fill="#f4f6f8"'),
        f'<circle cx="{x + 22}" cy="{y + 21}" r="10" fill="#222b36"/>',
        text(x + 22, y + 25.5, str(number), "number"),
        text(x + 40, y + 26, title, "title"),
        text(x + 12, y + 48, command, "command"),
    ]


def _stage(place: Place, name: str, words: str) -> list[str]:
    x, y, _, _ = place
    return [
        rect(place, 'rx="6" fill="#fff" stroke="#c4ccd6"'),
        f'<text x="{x + 14}" y="{y + 20}"><tspan class="stage">{name}</tspan>'
        f'<tspan class="small" dx="8">{escape(words)}</tspan></text>',
    ]


if __name__ == "__main__":
    FIGURE.write_text(figure(), "utf-8")
