"""The errors a user is meant to read."""


class VgsplusError(Exception):
    """Something the user can mend; the message says what is wrong, where, and what to do."""
