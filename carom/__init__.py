"""carom: diffusions that stay where the data lives. Domains, processes, solvers and scores are subpackages."""

from importlib.metadata import version

__version__ = version("carom")
