"""``kproxy completion``: the script that teaches a shell to complete kproxy's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from kproxy.cli.group import commands


@click.command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print the completion script for SHELL.

    \b
    bash:  source <(kproxy completion bash)
    zsh:   source <(kproxy completion zsh)
    fish:  kproxy completion fish | source
    """
    script = get_completion_class(shell)
    if script is None:
        raise click.UsageError(f"click has no completion for {shell}")
    click.echo(script(commands, {}, "kproxy", "_KPROXY_COMPLETE").source())
