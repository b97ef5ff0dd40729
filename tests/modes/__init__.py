"""Every way that vLLM serves a model: works, with its test, or is refused, with its error."""
