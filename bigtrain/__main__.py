"""`python -m bigtrain`."""

from bigtrain.cli import main

main()
