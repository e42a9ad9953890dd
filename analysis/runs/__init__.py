"""A run of a search as frames, tables and figures."""
