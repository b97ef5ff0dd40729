"""Everything that only a GPU can show, in stages: ``python -m benchmarks.gpu_check --help``."""
