"""Every contact with vLLM's inside. vLLM promises no stability here, so each contact has a test.

A folder for each of vLLM's processes, and one for what they share:

- ``common``: what a request's plan is, how layers lie in bands, which engines we refuse
- ``frontend``: the process that takes requests: admission, questions to the engines
- ``scheduler``: when a request runs, and where its KV is allocated
- ``worker``: the model: ranks, cuts, attention metadata, CUDA graphs

``register`` is the plugin's entry point in all of them. A process's folder imports itself and
``common``, never another's.
"""
