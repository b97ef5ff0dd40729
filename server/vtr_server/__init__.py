"""The HTTP side of VTR: routes that put a vision-token budget into vLLM's OpenAI server.

- ``gate``: before a body is read: keys, scopes, allowances, bounds, drain
- ``http``: routes, one request from ask to answer, errors
- ``policy``: what was asked, what is chosen within policy, settings, schedules, elastic budgets
- ``vllm_api``: vLLM's handlers and client; the launcher; batch files
- ``media``: what an image may be, and where it may come from
- ``operations``: metrics, health, what runs beside the requests, admin routes
- ``jobs``: searches as jobs; ``page``: the page

``plugin`` is vLLM's way in and puts the parts together.
"""
