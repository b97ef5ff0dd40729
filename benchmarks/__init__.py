"""Speed, memory and accuracy measured beside stock vLLM; see docs/benchmarks.md."""
