"""`python -m fibration`, the same as the command `fibration`."""

from .cli import main

main()
