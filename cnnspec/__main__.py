"""Run the command line: `python -m cnnspec`."""

from cnnspec.cli import main

main()
