"""What can go wrong with the lab itself, as opposed to the programs in it."""


class LabError(Exception):
    """The lab cannot be built, or was asked for something that it does not have."""


class ProgramError(LabError):
    """A program of the lab failed, ended early, or did not say what was waited for."""
