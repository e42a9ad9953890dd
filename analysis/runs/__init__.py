"""A run, loaded: its frames, the ranking of its trials, and its figures."""
