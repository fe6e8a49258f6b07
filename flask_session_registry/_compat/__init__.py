"""Adapters: one module for each library whose private parts or releases need special care.

Private and undocumented parts of a library are used in its adapter only. For each of them, a test
in ``tests/test_traps.py`` fails when the library changes it.
"""
