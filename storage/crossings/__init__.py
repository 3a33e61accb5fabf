"""The crossings code: atoms as what changes from row to row, in few bytes."""
