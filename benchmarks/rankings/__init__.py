"""How alike the layers of a model rank the vision tokens, and what follows for ranking once.

Zhao et al. (CVPR 2025, arXiv 2412.00556) find that attention ranks the vision tokens alike in
every layer but the first, Kendall's tau 0.7 and above. ``layers``: is it so, in plain Transformers.
``once``: what follows for ranking once, at the first cut, against ranking at each cut, in the engine
and at equal counts.
"""
