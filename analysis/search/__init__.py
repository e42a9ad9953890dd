"""A search evaluated: the rank fidelity of its rungs, the importance of its parameters, and calibrations of its protocol."""
