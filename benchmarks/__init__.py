"""Benchmarks: the same work on several servers, in turn.  ``python -m benchmarks`` runs them."""
