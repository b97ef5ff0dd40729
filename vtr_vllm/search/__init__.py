"""The offline search: it finds the schedule of a model from questions with known answers."""
