"""Scaling curves: fits with intervals, forecasts, and where two curves meet."""
