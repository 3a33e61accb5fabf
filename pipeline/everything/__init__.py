"""SAM's "segment everything": the official generator's masks for a fraction of its work."""
