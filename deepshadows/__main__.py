"""`python -m deepshadows VERB ...`: the same as the command."""

from deepshadows.cli import main

main()
