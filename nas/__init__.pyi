# The public names of nas and their modules, for lazy_loader and for type checkers.
from .execution.runner import run_study as run_study
from .runs.run import read_run as read_run
from .study.load import load_study as load_study
