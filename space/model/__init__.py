"""The network of a spec; the only part of `space` that needs torch."""
