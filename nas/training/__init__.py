"""One trial: steps, checkpoints, scores, the exported model."""
