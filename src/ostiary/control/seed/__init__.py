"""Providers of the environment, brought into the database when the control plane starts (reference C.6).

`plan`      what to do about each, given the rows there are: pure
`executor`  reads the environment and the rows, carries the plan out in one transaction
"""

from ostiary.core.provider_env import DesiredProvider, ProviderEnvError, read_provider_environment

from .executor import SeedError, SeedReport, seed
from .plan import Drift, ExistingProvider, Insert, Keep, Repoint, Skip, Step, plan

__all__ = [
    "DesiredProvider",
    "Drift",
    "ExistingProvider",
    "Insert",
    "Keep",
    "ProviderEnvError",
    "Repoint",
    "SeedError",
    "SeedReport",
    "Skip",
    "Step",
    "plan",
    "read_provider_environment",
    "seed",
]
