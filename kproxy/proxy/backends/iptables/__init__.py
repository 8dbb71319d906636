"""iptables: kube-proxy's chains, names, order and comments, rule for rule."""
