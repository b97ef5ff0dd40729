"""What all of vLLM's processes must agree on."""
