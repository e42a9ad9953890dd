"""The published tables and figures, rebuilt from the published numbers only."""
