"""The ``kproxy`` command: finds the verb, runs it, and turns errors into clean lines.

Law: a verb's module is imported when that verb is asked for, never before. ``kproxy proxy`` starts once per node and
must not pay for the tables of ``kproxy get``: therefore it and ``render`` are dispatched before click is imported.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from kproxy.errors import ApiError, HostError, KproxyError, Unreachable
from netns.errors import NetnsError

if TYPE_CHECKING:
    import click

OWN_PARSERS = {"proxy": "kproxy.cli.proxy", "render": "kproxy.cli.render"}
"""Verbs with kube-proxy's flag syntax: module whose ``run(argv) -> exit status`` takes the arguments as they are."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as the shell has it."""


def main() -> None:
    """Run one command and exit with its status."""
    argv = sys.argv[1:]
    try:
        if argv and argv[0] in OWN_PARSERS:
            sys.exit(run_own_parser(argv[0], argv[1:]))
        sys.exit(_run_click(argv))
    except (KproxyError, NetnsError) as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # `kproxy get pods | head` is no error: it ends as a program does that the signal ends.
        _leave_stdout()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _leave_stdout()
        sys.stderr.write(f"error: cannot write: {os.strerror(errno.ENOSPC)}\n")
        sys.exit(1)


def _leave_stdout() -> None:
    """Let what is still buffered go nowhere, so that Python does not complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run_click(argv: list[str]) -> int:
    """Run a verb of the click group; returns its exit status.

    Not click's standalone mode, which answers Ctrl-C with "Aborted!" and 1.
    """
    import click

    try:
        status = _commands().main(args=argv, prog_name="kproxy", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    except Unreachable as error:
        # These verbs speak with labs alone; a control plane that was killed has left its socket behind.
        raise HostError(str(error), left="`kproxy lab up` starts a control plane that is gone") from error
    sys.stdout.flush()
    return status if isinstance(status, int) else 0


def run_own_parser(verb: str, argv: list[str]) -> int:
    """Run a verb of ``OWN_PARSERS``; returns its exit status."""
    run = import_module(OWN_PARSERS[verb]).run
    status: int = run(argv)
    sys.stdout.flush()
    return status


def report(error: KproxyError | NetnsError) -> int:
    """Write an error to stderr, in kubectl's form; returns the exit status."""
    if isinstance(error, ApiError):
        sys.stderr.write(f"Error from server ({error.reason}): {error}\n")
    else:
        sys.stderr.write(f"error: {error}\n")
    return 1


def _commands() -> click.Group:
    from kproxy.cli.group import commands

    return commands


if __name__ == "__main__":
    main()
