"""`medtune doctor`: looks at everything that the service needs on this machine, and says how to mend what is wrong.

One line for each thing. It changes nothing but a probe object in the store, unless `--fix` tells it to clean up. No
secret gets into what it prints.
"""

from cli.doctor.command import add_commands

__all__ = ["add_commands"]
