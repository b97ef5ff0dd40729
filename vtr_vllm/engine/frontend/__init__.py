"""In the process that takes requests: vLLM's API server, or that of an ``LLM``."""
