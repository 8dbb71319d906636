"""kproxy: a kube-proxy one can see through, and a cluster of network namespaces to run it in."""

__version__ = "0.1.0"
