"""Search spaces over specs: their domains, their points, and the feasible ones among them."""
