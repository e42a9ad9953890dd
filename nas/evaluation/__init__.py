"""How models are scored."""
