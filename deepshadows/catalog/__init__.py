"""Scores in, a versioned HATS catalogue out; no Ray, no torch."""
