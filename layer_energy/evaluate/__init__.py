"""Predictions beside measurements: layers left out, whole networks, baselines, and the paper."""

from layer_energy.evaluate.intervals import held_out_coverage
from layer_energy.evaluate.measured import (
    BASELINES,
    Baseline,
    Score,
    evaluate_layers,
    evaluate_networks,
    fit_profile,
    network_scores,
    score,
)
from layer_energy.evaluate.paper import PaperTable, evaluate_paper

__all__ = [
    "BASELINES",
    "Baseline",
    "PaperTable",
    "Score",
    "evaluate_layers",
    "evaluate_networks",
    "evaluate_paper",
    "fit_profile",
    "held_out_coverage",
    "network_scores",
    "score",
]
