"""`neuzip completion`."""

from __future__ import annotations

import click

from neuzip.cli import options


@click.command(
    epilog=options.show_examples(
        'eval "$(neuzip completion bash)"                                in ~/.bashrc',
        'eval "$(neuzip completion zsh)"                                 in ~/.zshrc',
        "neuzip completion fish > ~/.config/fish/completions/neuzip.fish",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL."""
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None  # click has all three
    # The program asks for completions through this variable (click's convention for a program named neuzip).
    click.echo(script(ctx.find_root().command, {}, "neuzip", "_NEUZIP_COMPLETE").source())
