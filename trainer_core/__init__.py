"""The trainer: turns a run folder into a verified LoRA adapter, alone, without database, network or secret."""
