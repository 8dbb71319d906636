"""``kproxy proxy``: the node proxy, with kube-proxy's own flags."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from kproxy import __version__
from kproxy.proxy.config import FLAGS, file_contents, parse_arguments

USAGE = """\
Usage: kproxy proxy (--manifests DIR | --master URL) [--hostname-override NODE] [kube-proxy's flags]

Keeps this host's iptables in step with Services and EndpointSlices, as kube-proxy does.

  --manifests DIR          take the objects from YAML and JSON files in DIR, followed as they change
  --master URL             take them from a Kubernetes API: http(s)://host:port or unix:///path
  --iptables-variant V     auto (default), legacy or nft
  --iptables-writer W      iptables-restore (default) or python-iptables (legacy variant, at most 2,000 rules)
  --config FILE            a KubeProxyConfiguration; nearly all flags are ignored beside it
  --cleanup                take everything of a node proxy's off this host and exit
  --init-only              do what needs privileges and exit
  --write-config-to FILE   write the configuration that the other flags mean, and exit

SIGUSR1 makes it write everything again. All flags:
"""


def run(argv: Sequence[str]) -> int:
    """Run the node proxy; returns its exit status.

    Raises:
        UserError: the flags cannot work.
        HostError: the host cannot do what is needed.
    """
    if set(argv) & {"-h", "--help"}:
        sys.stdout.write(USAGE + "".join(f"  --{name}\n" for name in sorted(FLAGS)))
        return 0
    if "--version" in argv:
        sys.stdout.write(f"kproxy {__version__}\n")
        return 0
    config = parse_arguments(argv)
    if config.write_config_to:
        text = json.dumps(file_contents(config), indent=2)  # JSON is YAML as well
        Path(config.write_config_to).write_text(text + "\n", encoding="utf-8")
        return 0
    logging.basicConfig(
        level=logging.DEBUG if config.v >= 2 else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    from kproxy.proxy import node_proxy

    return node_proxy.run(config)
