"""`python -m transfuse.cli` is the command `transfuse`."""

from transfuse.cli.main import main

main()
