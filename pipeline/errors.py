"""Errors that a user can cause. The command line shows each as one line; any other is a bug.

Template: {thing} {is/was} {what is wrong}: {found} (expected {wanted}). {What to do next.}
"""


class PipelineError(Exception):
    """A user's mistake or a damaged input, with a message of one line."""


class ConfigError(PipelineError, ValueError):
    """A setting is unknown, has the wrong type, is out of range or has no effect."""


class ArtefactNotFound(PipelineError, FileNotFoundError):
    """An input does not exist at its path or address."""


class NotSealed(ArtefactNotFound):
    """A teacher cache exists but is not complete."""


class ArtefactExists(PipelineError, FileExistsError):
    """An output exists and was made from other inputs; nothing is overwritten."""


class ArtefactMismatch(PipelineError, ValueError):
    """An artefact is damaged, or was made from other inputs than the ones given."""


class Damaged(ArtefactMismatch):
    """An artefact changed after it was written: an object is missing, truncated or altered."""


class Terminated(BaseException):
    """The process was asked to end, and ended at a point from which the same command resumes.

    Like a KeyboardInterrupt it passes every `except Exception`: a signal may come at any line.
    """


class PeerLost(PipelineError):
    """Another process of the job has ended, so this one cannot continue."""
