"""Supervisor and embedded PostgreSQL."""
