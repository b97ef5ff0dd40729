"""What must be in the environment before the first import of vllm."""

import os

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # no test fetches anything
    "OMP_NUM_THREADS": "2",  # the same splits of work, so the same rounding, on every machine
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; the default takes a share of the whole memory
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, where tests can look inside
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
