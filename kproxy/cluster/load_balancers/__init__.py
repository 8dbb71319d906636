"""Services of type LoadBalancer in a lab: addresses from a pool, and who brings packets for them to the nodes."""
