"""The table of verbs, and the click group that loads a verb's module when it is asked for."""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

import click

from kproxy import __version__
from kproxy.cli.main import OWN_PARSERS, run_own_parser


class Verb(NamedTuple):
    """Where a verb lives and what it does in one line; an empty place means ``OWN_PARSERS`` has it."""

    place: str
    short_help: str


SECTIONS: dict[str, dict[str, Verb]] = {
    "The lab": {
        "lab": Verb("kproxy.cli.lab:lab", "Bring a cluster of network namespaces up, down, or show it"),
    },
    "Objects": {
        "apply": Verb("kproxy.cli.apply:apply", "Create or change objects, all or nothing, and wait for the nodes"),
        "delete": Verb("kproxy.cli.apply:delete", "Delete objects by file or by name"),
        "diff": Verb("kproxy.cli.apply:diff", "Show what apply would change"),
        "get": Verb("kproxy.cli.get:get", "List objects"),
        "describe": Verb("kproxy.cli.get:describe", "Show one object with what belongs to it"),
    },
    "Inside": {
        "exec": Verb("kproxy.cli.run:exec_", "Run a command in a pod, on a node or on a client"),
        "logs": Verb("kproxy.cli.run:logs", "Print the log of a pod or of a node's proxy"),
        "capture": Verb("kproxy.cli.run:capture", "Capture packets at a pod, node or client"),
    },
    "The proof": {
        "verify": Verb("kproxy.cli.verify:verify", "Send packets from every place to every frontend and compare"),
        "audit": Verb("kproxy.cli.audit:audit_", "Compare a node's kernel with its plan, rule by rule, with counters"),
        "render": Verb("", "Print the rules that a node would get, offline and without root"),
    },
    "The node proxy": {
        "proxy": Verb("", "Keep one node's rules in step with Services; kube-proxy's flags"),
    },
    "This command": {
        "completion": Verb("kproxy.cli.completion:completion", "Print the completion script for bash, zsh or fish"),
    },
}

VERBS: dict[str, Verb] = {name: verb for section in SECTIONS.values() for name, verb in section.items()}


ELSEWHERE: dict[str, str] = {
    "create": "`kproxy apply -f FILE` creates objects and changes them",
    "replace": "`kproxy apply -f FILE` creates objects and changes them",
    "edit": "change the manifest and `kproxy apply -f FILE` it",
    "patch": "change the manifest and `kproxy apply -f FILE` it",
    "scale": "change spec.replicas in the manifest and `kproxy apply -f FILE` it",
    "rollout": "`kproxy apply -f FILE` waits until the new pods are ready",
    "wait": "`kproxy apply -f FILE` waits until the pods are ready and every node has programmed them",
    "run": "write a Pod or Deployment and `kproxy apply -f FILE` it",
    "expose": "write a Service and `kproxy apply -f FILE` it",
    "port-forward": "`kproxy exec client -- curl ...` and `kproxy exec POD -- curl ...` are inside the network",
    "cluster-info": "`kproxy lab status` shows the lab",
    "version": "`kproxy --version` prints it",
    "help": "`kproxy --help`, and `kproxy VERB --help`",
    "up": "`kproxy lab up` brings a lab up",
    "down": "`kproxy lab down` takes the lab down",
    "status": "`kproxy lab status` shows the lab",
    "resync": "`kproxy lab resync` makes every node write its rules anew",
    "check": "`kproxy lab check` tells what this host lacks",
}
"""What people's hands know from kubectl, or from `kproxy lab`, and where it is here."""


class LazyGroup(click.Group):
    """A group whose help comes from ``SECTIONS`` and whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of the help text."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, importing its module; None if there is no such verb."""
        if cmd_name in OWN_PARSERS:
            return _pass_through(cmd_name)
        verb = VERBS.get(cmd_name)
        if verb is None:
            return None
        module, _, attribute = verb.place.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb and what is left of the line; for what is no verb an error that says which one is meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], VERBS, n=1)
            hint = ELSEWHERE.get(args[0]) or (f"did you mean {near[0]}?" if near else "")
            if not hint:
                raise
            raise click.UsageError(f"{error.message.rstrip('.')}: {hint}", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs by section, importing none of them."""
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, verb.short_help) for name, verb in verbs.items()])


def _pass_through(name: str) -> click.Command:
    @click.pass_context
    def call(ctx: click.Context, argv: tuple[str, ...]) -> None:
        ctx.exit(run_own_parser(name, list(argv)))

    return click.Command(
        name,
        callback=call,
        params=[click.Argument(["argv"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
        short_help=VERBS[name].short_help,
    )


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--lab", metavar="NAME", help="The lab that is meant; also KPROXY_LAB. Default: the only one there is.")
@click.version_option(__version__, "--version", message="kproxy %(version)s")
def commands(lab: str | None) -> None:
    """A kube-proxy one can see through, and a cluster of network namespaces to run it in."""
    if lab:
        # Also for what this command starts: a shell under `kproxy exec` keeps to the same lab.
        os.environ["KPROXY_LAB"] = lab
