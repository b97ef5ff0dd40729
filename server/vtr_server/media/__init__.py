"""Images: what they may be, and where they may come from."""
