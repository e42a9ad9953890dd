"""Which trial comes next and which goes on. All of Optuna is here."""
