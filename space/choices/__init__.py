"""The choices of a stage, one module each: their names, what they mean for a spec, what they cost and what training keeps of them.

`space.model` looks up how each is built in tables that are checked against the same names, or by a `match` that the
type checker holds to be complete.
"""
