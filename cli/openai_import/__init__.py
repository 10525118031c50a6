"""`medtune import-openai DIR`: files and jobs that OpenAI's API told about, made again here.

`export.py` reads the folder, `table.py` the user's table of models and hyperparameters; `planning.py` says of each job
what it becomes or why it is not taken, and `carrying_out.py` uploads files, writes requests and submits them.
"""

from cli.openai_import.command import add_commands

__all__ = ["add_commands"]
