"""The network, its checkpoint, how it scores and how its probabilities are judged; no Ray."""

import os

# Threads of libgomp spin while they wait. Where other processes want the same cores, that stops everybody: scoring
# on 2 cores with a load of 3 to 6 fell from 6-7k to 0.7k images/s; after 1000 turns to sleep costs nothing when idle.
# It is read once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
