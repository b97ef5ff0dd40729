"""One small checkpoint per model family that is served, and the tests that all of them pass."""
