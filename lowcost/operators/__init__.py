"""The operators of the paper, one file each. They are re-exported from `lowcost`, not from here."""
