"""The command line. Every command speaks to a platform through the client, but for those that start one (`processes`).

One file a group of commands. `screen` is what they say and how it looks, `live` shows work as it goes on, `edge` is the edge:
exit codes and errors. Nothing here is imported before it is needed: `modelyard --help` answers at once.
"""

from modelyard.cli.edge import main

__all__ = ["main"]
