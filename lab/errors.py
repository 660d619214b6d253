"""What can go wrong in a lab, as messages for the person who started it."""


class LabError(Exception):
    """Something the user can read and act on; the command line shows it without a traceback."""
