"""The demo model's own training: ``python -m vtr_vllm.training.demo``."""
