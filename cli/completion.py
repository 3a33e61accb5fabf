"""`samprior completion`: the lines that teach a shell to complete commands, options and names."""

import click

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the completion script of a shell: bash (4.4 or newer), zsh or fish.

    \b
    source <(samprior completion bash)      # this shell only; for good:
    samprior completion bash > ~/.local/share/bash-completion/completions/samprior
    samprior completion zsh > "${fpath[1]}/_samprior"
    samprior completion fish > ~/.config/fish/completions/samprior.fish
    """
    from click.shell_completion import get_completion_class

    from samprior.cli.main import cli

    maker = get_completion_class(shell)
    assert maker is not None
    made = maker(cli, {}, "samprior", "_SAMPRIOR_COMPLETE")
    # Not source(), which starts bash to ask for its version.
    click.echo(made.source_template % made.source_vars())
