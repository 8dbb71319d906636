"""``kproxy proxy``: the node proxy, with kube-proxy's own flags."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from kproxy import __version__
from kproxy.proxy.flags import FLAGS, configuration, ignored, parse_flags

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
    values = parse_flags(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    config = configuration(values)
    if config.v >= 2:
        logging.getLogger().setLevel(logging.DEBUG)
    if without_effect := ignored(values, argv):
        why = "beside --config, or at all" if config.config else "here"
        logging.getLogger(__name__).info("flags without effect %s: %s", why, ", ".join(without_effect))
    if config.write_config_to:
        from kproxy.proxy.config_file import write_file

        write_file(config, Path(config.write_config_to))
        return 0
    from kproxy.proxy import node_proxy

    return node_proxy.run(config)
