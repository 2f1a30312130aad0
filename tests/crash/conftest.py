"""Fixtures of the crash tests."""

from tests.support.database_door import door

__all__ = ["door"]
