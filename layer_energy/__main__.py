"""``python -m layer_energy`` is the command line."""

from layer_energy.cli import main

main()
