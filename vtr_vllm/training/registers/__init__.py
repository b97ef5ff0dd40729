"""Registers (Victor, arXiv 2410.14072): learned tokens into which the first layers write an image.

docs/registers.md says how such a checkpoint is served. Importing the package itself loads nothing.
"""
