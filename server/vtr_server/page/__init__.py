"""The page at ``/``: its routes, and the static files that they serve."""
