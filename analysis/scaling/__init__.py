"""Scaling curves: fits with intervals, predictions, and the crossings of two curves."""
