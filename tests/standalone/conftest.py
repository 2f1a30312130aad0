"""Fixtures of standalone gateways."""

from tests.support.gateway import start_gateway

__all__ = ["start_gateway"]
