"""The demo model with registers (Victor, arXiv 2410.14072): ``python -m vtr_vllm.training.registers.demo``."""
