"""Importing this fills LEAKS."""

from tests.tracing.leaks import disguises, internet, kernel, later, neighbours

__all__ = ["disguises", "internet", "kernel", "later", "neighbours"]
