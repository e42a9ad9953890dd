"""The cost of a spec in closed form: parameters, multiply-accumulates and memory, for one spec or many at once."""
