"""The experiments of arXiv:2011.12437, one module each, and what they share. Used by the verb `experiments`."""
