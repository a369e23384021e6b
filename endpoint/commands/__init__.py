"""The command line, one module for each command.

Each has ``add_to(commands)``, which declares its arguments and sets ``run`` to a function from the parsed options to
the exit status.
"""
