"""Whole training runs: projections while they go (STEP), regression before (PRE), baselines."""

from layer_energy.training.projection import Projection
from layer_energy.training.projector import EnergyProjector
from layer_energy.training.replay import project_trace
from layer_energy.training.trace import PowerTrace

__all__ = ["EnergyProjector", "PowerTrace", "Projection", "project_trace"]
