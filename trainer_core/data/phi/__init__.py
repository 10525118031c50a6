"""Identifiers of patients in training rows: the eighteen of HIPAA's Safe Harbor, by rules alone. Torch-free."""
