"""How fast it is: the same work on several servers, side by side and in turn.  ``python -m benchmarks`` runs it."""
