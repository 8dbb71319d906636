"""The kproxy command: one file per group of verbs."""
