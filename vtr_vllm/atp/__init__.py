"""ATP-LLaVA (arXiv 2412.00447): trained modules that say how many vision tokens stay.

What they compute and the files that hold them, for training and engine alike. The paper's equations are
numbered as in its accounts; docs/atp.md says what of them is uncertain. Importing the package itself loads
nothing.
"""
