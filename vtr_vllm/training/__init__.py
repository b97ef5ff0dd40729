"""Training of what reduces vision tokens, in Transformers: ``vtr train``. Importing it loads nothing."""
