"""`python -m iwm`."""

from iwm.cli.main import main

main()
