"""Other people's measurements as this project's, by declared mappings.

The data stay where they are; nothing of them is part of this package.
"""

from layer_energy.external.codecarbon import read_codecarbon
from layer_energy.external.getzner2023 import PaperData, read_getzner2023
from layer_energy.external.mapping import ColumnMapping, read_csv

__all__ = ["ColumnMapping", "PaperData", "read_codecarbon", "read_csv", "read_getzner2023"]
