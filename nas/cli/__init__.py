"""The commands; the one place that knows all packages, `analysis` included."""
