"""Reports: totals, by layer type, by module; as text and as a table."""

from layer_energy.report.report import EnergyReport, LayerEstimate, Share

__all__ = ["EnergyReport", "LayerEstimate", "Share"]
