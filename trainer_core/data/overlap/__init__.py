"""Rows that are there twice, nearly twice, or also in what the model is judged by. Torch-free.

`search.py` is the story. `row_text.py` says what of a row is compared, `sketches.py` and `neighbours.py` find rows that
are nearly the same, `benchmark_files.py`, `items.py` and `item_index.py` what a row shares with a benchmark or a probe.
"""
