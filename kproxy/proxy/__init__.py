"""kube-proxy itself: what one node does with Services. Sees the API objects and the client, never the lab."""
