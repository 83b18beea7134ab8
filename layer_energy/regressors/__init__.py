"""Regressors: features of a layer type → joules and seconds."""

from layer_energy.regressors.base import TARGETS, Regressor, load, make, names, register
from layer_energy.regressors.features import Features, features
from layer_energy.regressors.hybrid import Hybrid
from layer_energy.regressors.physical import Physical
from layer_energy.regressors.polynomial import Polynomial

__all__ = [
    "TARGETS",
    "Features",
    "Hybrid",
    "Physical",
    "Polynomial",
    "Regressor",
    "features",
    "load",
    "make",
    "names",
    "register",
]
