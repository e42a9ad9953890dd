"""Train, score, search, schedule, record and export."""
