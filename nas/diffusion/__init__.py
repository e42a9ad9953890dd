"""The noise process, what is predicted, the samplers."""
