"""What the page is told when it asked for something that cannot be done."""

__all__ = ["Refused"]


class Refused(ValueError):
    """One message for the page, with the status of the answer (4xx). It names no path of this machine."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status
