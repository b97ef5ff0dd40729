"""What happens to the rows of a step: ranking, the plan of a batch, gather. Torch, no vLLM."""
