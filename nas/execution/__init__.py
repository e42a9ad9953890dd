"""Runs a study where the workers are: in this process or on Ray. All of Ray is here."""
