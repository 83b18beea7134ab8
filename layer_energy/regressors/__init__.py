"""Regressors: features of a layer type → joules and seconds."""

from layer_energy.regressors.base import TARGETS, Regressor, load, make, names, register
from layer_energy.regressors.features import Features, features
from layer_energy.regressors.hybrid import Hybrid
from layer_energy.regressors.physical import Physical
from layer_energy.regressors.polynomial import Polynomial
from layer_energy.regressors.selection import AUTO, CANDIDATES, choose, extrapolation_error

__all__ = [
    "AUTO",
    "CANDIDATES",
    "TARGETS",
    "Features",
    "Hybrid",
    "Physical",
    "Polynomial",
    "Regressor",
    "choose",
    "extrapolation_error",
    "features",
    "load",
    "make",
    "names",
    "register",
]
