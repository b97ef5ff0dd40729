"""The files of the server that touch vLLM's own server: its handlers, client and launcher."""
