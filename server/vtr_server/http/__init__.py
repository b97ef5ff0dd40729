"""Routes, one request from ask to answer, and errors in OpenAI's form."""
