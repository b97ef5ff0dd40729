"""ATP-LLaVA (arXiv 2412.00447): how many vision tokens stay, decided instance by instance.

Training and offline inference in Transformers. The paper's equations are numbered as in its accounts,
and docs/atp.md says what of them is uncertain. Importing the package itself loads nothing.
"""
