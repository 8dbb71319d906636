"""``kproxy proxy``: the node proxy, with kube-proxy's own flags."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from kproxy import __version__
from kproxy.errors import UserError
from kproxy.proxy.flags import FLAGS, configuration, ignored, parse_flags

USAGE = """\
Usage: kproxy proxy [--manifests DIR | --kubeconfig FILE | --master URL] [--hostname-override NODE] [kube-proxy's flags]

Keeps this host's iptables in step with Services and EndpointSlices, as kube-proxy does.

  --manifests DIR          take the objects from YAML and JSON files in DIR, followed as they change
  --kubeconfig FILE        take them from the Kubernetes API that the file names; without any of the three, in a pod,
                           from the cluster's own
  --master URL             take them from the API there: http(s)://host:port or unix:///path
  --iptables-variant V     auto (default), legacy or nft
  --iptables-writer W      iptables-restore (default) or python-iptables (legacy variant, at most 2,000 rules)
  --config FILE            a KubeProxyConfiguration; nearly all flags are ignored beside it
  --cleanup                take everything of a node proxy's off this host and exit
  --init-only              do what needs privileges and exit
  --write-config-to FILE   write the configuration that the other flags mean, and exit

SIGUSR1 makes it write everything again. All flags:
"""


CAP_NET_ADMIN = 12
"""Number of the capability (linux/capability.h)."""


def run(argv: Sequence[str]) -> int:
    """Run the node proxy; returns its exit status.

    Raises:
        UserError: the flags cannot work, or it is not run as root.
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
    if not may_administer_networks():
        raise UserError("kproxy proxy needs root (CAP_NET_ADMIN): put sudo before it")
    from kproxy.proxy import node_proxy

    return node_proxy.run(config)


def may_administer_networks(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has CAP_NET_ADMIN; asked before anything is tried, for one clear answer.

    Args:
        status: what the kernel says of the process.
    """
    with status.open(encoding="utf-8", errors="replace") as lines:
        return any(line.startswith("CapEff:") and int(line.split()[1], 16) >> CAP_NET_ADMIN & 1 for line in lines)
