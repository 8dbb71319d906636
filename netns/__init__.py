"""Linux network plumbing: namespaces, links, routes, sysctls, processes, probes. Nothing of Kubernetes."""
