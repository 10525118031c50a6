"""LoRA adapters: writing them, refusing anything else, proving that they work."""
