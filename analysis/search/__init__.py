"""A search evaluated: the rank fidelity of its rungs and the importance of its parameters."""
