"""Finished images as their users hold them, brought into cut-out shards. No Ray, no torch."""
