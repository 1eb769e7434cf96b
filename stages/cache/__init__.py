"""The commands on caches: info, estimate, verify, copy and collecting garbage."""
