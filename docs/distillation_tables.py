"""Write the tables of docs/distillation.md from benchmarks/results/distillation_*.json.

    python docs/distillation_tables.py

A test checks that the page has them as they are.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "distillation.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- tables: python docs/distillation_tables.py -->\n", "<!-- end of tables -->\n"


def tables() -> str:
    """A section for each study, in the order of their files' names."""
    files = sorted(RESULTS.glob("distillation_*.json"))
    studies = [(file.stem, json.loads(file.read_text("utf-8"))) for file in files]
    return "\n".join(section(name, study) for name, study in studies if "table" in study)


def section(name: str, study: dict[str, Any]) -> str:
    """Heading, what was run, the arms, and what a step costs."""
    title = name.removeprefix("distillation_").replace("_", ", ")
    settings, scores = study["settings"], study["scores"]["control"]
    stages = settings["stages"]
    about = (
        f"{len(scores)} seeds, {len(scores[0])} test pictures; base {study['base_steps']} steps, "
        f"then {stages['distill']} each; loss {settings['loss']['reconstruction']}; commit "
        f"`{study['commit'][:12]}`; {study['machine']['processor']}."
    )
    parts = [f"### {title}", about, f"```sh\n{study['command']}\n```", table(study["table"])]
    if study["mask_table"]:
        parts += ["What the right masks are worth:", table(study["mask_table"])]
    return "\n\n".join([*parts, costs(study)]) + "\n"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys in markdown."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[key]) for key in names] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def costs(study: dict[str, Any]) -> str:
    """What a step of stage B costs, against a plain one of the same network and batch."""
    return "Cost: " + "; ".join(row["result"] for row in study["rows"]) + "."


def filled(page: str) -> str:
    """The page with the tables in their place."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
