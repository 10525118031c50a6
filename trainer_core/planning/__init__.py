"""What a run will take and how it will use its hardware, decided before anything is loaded. Torch-free."""
