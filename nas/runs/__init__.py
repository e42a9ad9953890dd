"""The run directory: records, typed events, ledger, what they add up to, its copy at a URI, the names of its files."""
