"""Studies: networks trained again and again, measured, and compared with statistics.

After del Rey et al. 2025 (arXiv 2307.05520), whose protocol and tests these are.
"""

from layer_energy.study.analysis import Analysis, analyze
from layer_energy.study.runner import StudySummary, run_study
from layer_energy.study.spec import Study, load_study
from layer_energy.study.table import read_runs

__all__ = ["Analysis", "Study", "StudySummary", "analyze", "load_study", "read_runs", "run_study"]
