"""`samprior presets`: the recipes that ship, as a list or one of them as a file."""

import click

from samprior.cli.options import json_option, offer_presets, print_json


@click.command("presets")
@click.argument("name", required=False, shell_complete=offer_presets)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the training recipes that ship, or print one.

    Each is a published recipe of one network on one data set. Print it to a file to change it, or
    override single keys.

    \b
    samprior presets
    samprior presets gopro_nafnet_w32 > mine.toml
    samprior train --config gopro_nafnet_w32 --set data.train=stores/gopro --set out=runs/gopro
    """
    from samprior.training.recipes import preset_names, preset_text, read_recipe

    if name is not None:
        text = preset_text(name)
        if as_json:
            print_json({"name": name, "toml": text})
        else:
            click.echo(text, nl=False)
        return
    recipes = [read_recipe(each) for each in preset_names()]
    if as_json:
        print_json({"presets": [vars(recipe) for recipe in recipes]})
        return
    rows = [(r.name, r.task, r.network, f"{r.steps:,}", r.about) for r in recipes]
    head = ("preset", "task", "network", "steps", "")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        cells[3] = row[3].rjust(widths[3])
        click.echo("  ".join(cells).rstrip())
