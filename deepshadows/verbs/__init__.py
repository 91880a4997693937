"""What a user runs, one module a verb; the only room that imports Ray."""
