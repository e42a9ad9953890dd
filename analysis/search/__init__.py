"""What a search's trials say about the search: rank fidelity of rungs, importance of parameters."""
