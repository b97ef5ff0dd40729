"""Every contact with vLLM's inside. vLLM promises no stability here, so each contact has a test.

Where to read first: ``register`` (what the plugin installs), ``scheduler`` and ``kv_bands``
(the scheduler process), ``model`` (the decoder loop with cuts), ``runner_v1`` and ``runner_v2``
(thin adapters), ``attention`` (what the adapters share).
"""
