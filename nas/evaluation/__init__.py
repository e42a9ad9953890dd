"""How good a model's predictions and samples are."""
