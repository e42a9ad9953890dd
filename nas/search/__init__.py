"""Decides which trial begins next and which trains on. All of Optuna is here."""
