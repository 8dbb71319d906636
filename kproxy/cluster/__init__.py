"""The control plane of a lab: what the rest of Kubernetes does around kube-proxy."""
