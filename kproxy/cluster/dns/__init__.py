"""Names for Services: the DNS server of a lab's cluster, and the one that names hosts outside."""
