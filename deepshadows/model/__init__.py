"""The network, its checkpoint, how it scores and how its probabilities are judged; no Ray."""
