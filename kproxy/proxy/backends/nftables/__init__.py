"""nf_tables: one map element per endpoint, one chain per number of endpoints, written over nfnetlink."""
