"""Figures of other implementations that the tests compare with, see README.md."""
