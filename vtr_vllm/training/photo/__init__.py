"""Training of the photo model: its projector, and LoRA on its decoder; the tower stays."""
