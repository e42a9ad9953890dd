"""Replays recorded curves: the decisions that other rungs or samplers would have made."""
