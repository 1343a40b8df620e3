"""Implements the operators of the paper, one per file. `lowcost` re-exports them; this package does not."""
