"""Alembic migrations. `ostiary.control.store.migrate` runs them; there is no ini file.

A migration is written out in SQL, never made from `tables.py`, and is additive within a minor version of the program:
the previous control plane has to go on working on what it leaves (design §12).
"""
