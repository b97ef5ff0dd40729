"""The HTTP side of VTR: routes that put a vision-token budget into vLLM's OpenAI server.

``plugin`` is vLLM's way in; ``routes`` serve; ``protocol`` says what may be asked; ``choice``
turns that into a schedule and back into facts; ``engine`` is the only file that imports vllm.
"""
