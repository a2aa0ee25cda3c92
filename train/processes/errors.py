"""The error of a process whose work with the others ended through one of them. Without torch: tools name it, too."""


class OtherProcessError(RuntimeError):
    """What this process does with the others failed because another one ended, failed, or did not come in time."""
