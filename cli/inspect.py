"""`samprior inspect`: look at a store's masks."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from samprior.cli.options import PathOption, json_option, print_json
from samprior.cli.progress import progress

if TYPE_CHECKING:
    from samprior.storage import MaskStore
    from samprior.storage.viewer import Viewer


@click.command("inspect")
@click.argument("store", type=PathOption)
@click.option(
    "-o",
    "--out",
    type=PathOption,
    help="The report's file; with --pages their folder.  [default: report.html, pages]",
)
@click.option("--num-images", type=int, help="Images that the report draws.  [default: 24]")
@click.option("--serve", is_flag=True, help="Leaf through all images in a browser, until Ctrl-C.")
@click.option("--port", type=int, help="Port of --serve on this machine.  [default: a free one]")
@click.option("--pages", is_flag=True, help="Write the pages of --serve to a folder.")
@click.option(
    "--against", type=PathOption, metavar="STORE2", help="Show the masks of STORE2 beside them."
)
@json_option
def command(
    store: Path,
    out: Path | None,
    num_images: int | None,
    serve: bool,
    port: int | None,
    pages: bool,
    against: Path | None,
    as_json: bool,
) -> None:
    """Draw a store as one self-contained HTML page, the strangest images first.

    --serve and --pages show every image on a page of its own, where masks are switched on and off
    and their scores are listed; --against puts the masks of a second store beside them. The server
    answers this machine alone.

    \b
    samprior inspect stores/gopro -o report.html
    samprior inspect stores/gopro --serve
    samprior inspect stores/gopro --against stores/gopro-vit-b --pages -o pages
    """
    from samprior.storage import MaskStore
    from samprior.storage.errors import UsageError

    if serve and (pages or out is not None):
        raise UsageError("--serve writes nothing; give --pages and --out without it")
    if num_images is not None and (serve or pages):
        raise UsageError("--num-images is for the report; --serve and --pages show all images")
    if port is not None and not serve:
        raise UsageError("--port goes with --serve")
    if against is not None and not (serve or pages):
        raise UsageError("--against goes with --serve or --pages")
    opened = MaskStore.open(store)
    if not (serve or pages):
        _report(opened, out or Path("report.html"), num_images, as_json=as_json)
        return
    from samprior.storage.viewer import Viewer, write_pages

    viewer = Viewer(opened, MaskStore.open(against) if against is not None else None)
    if serve:
        _serve(viewer, port or 0, as_json=as_json)
        return
    with progress("drawing", "page") as advance:
        index = write_pages(viewer, out or Path("pages"), progress=advance)
    if as_json:
        print_json({"out": index.parent, "index": index, "num_drawn": len(opened)})
    else:
        click.echo(f"{index}")


def _report(store: "MaskStore", out: Path, num_images: int | None, *, as_json: bool) -> None:
    from samprior.storage.inspect import NUM_IMAGES, write_report

    number = NUM_IMAGES if num_images is None else num_images
    with progress("drawing", "image") as advance:
        write_report(store, out, num_images=number, progress=advance)
    if as_json:
        print_json({"out": out, "num_drawn": min(number, len(store))})
    else:
        click.echo(f"{out}")


def _serve(viewer: "Viewer", port: int, *, as_json: bool) -> None:
    from samprior.cli.ending import clean_ending
    from samprior.storage.serving import page_server, url_of

    def say(number: signal.Signals) -> None:
        if number == signal.SIGINT:
            raise click.exceptions.Exit(0)  # it is how one ends a server
        click.echo(f"samprior: ended by {number.name}", err=True)

    with clean_ending(say), page_server(viewer, port=port) as server:
        if as_json:
            print_json({"url": url_of(server)})
        else:
            click.echo(f"{url_of(server)}  (Ctrl-C ends it)")
        server.serve_forever()
