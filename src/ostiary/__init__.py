"""Ostiary, an AI gateway: the door between coding agents and AI providers, and the keeper of its keys.

Imports go one way: cli → config → runtime → {control, gateway, link, fake} → {http1, wire, rpc} → core.
"""

__version__ = "0.1.0"
