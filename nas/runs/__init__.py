"""The run directory: records, typed events, the ledger, the run built from them, its copy at a URI, the names of its files."""
