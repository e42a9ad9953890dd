"""How specs vary: the domains of a search space, its points, and what is feasible among them."""
