"""What a request asked for, what it gets within policy, and what that came to. No vllm here."""
