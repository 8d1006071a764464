"""`python -m installer.opsd [CONFIG]`."""

from installer.opsd.main import main

main()
