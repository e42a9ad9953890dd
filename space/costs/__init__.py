"""What a spec costs: parameters, multiply-accumulates and memory, in closed form, for one spec or many at once."""
