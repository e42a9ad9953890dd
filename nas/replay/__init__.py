"""What other rungs or samplers would have decided over recorded curves."""
