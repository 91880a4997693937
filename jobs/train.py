"""`deepshadows train` for a raw submission: ray job submit --working-dir jobs -- python train.py [flags]."""

import sys

from deepshadows.cli import main

main(["train", *sys.argv[1:]])
