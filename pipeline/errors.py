"""The errors a user can cause. The command line shows each as one line; anything else is a bug.

Template: {thing} {is/was} {what is wrong}: {found} (expected {wanted}). {What to do next.}
"""


class PipelineError(Exception):
    """A user's mistake or a damaged input, told in one line."""


class ConfigError(PipelineError, ValueError):
    """A setting is unknown, has the wrong type, is out of range or has no effect."""


class ArtefactNotFound(PipelineError, FileNotFoundError):
    """An input does not exist where it was looked for."""


class NotSealed(ArtefactNotFound):
    """A teacher cache exists and is not complete."""


class ArtefactExists(PipelineError, FileExistsError):
    """An output exists and was made from other inputs; nothing is overwritten."""


class ArtefactMismatch(PipelineError, ValueError):
    """An artefact is damaged, or was made from other inputs than the ones given."""


class Damaged(ArtefactMismatch):
    """An artefact is not what was written: an object is missing, torn or changed."""


class Terminated(PipelineError):
    """The process was asked to end, and did, at a place where it can go on."""


class PeerLost(PipelineError):
    """Another process of the job has ended, so this one cannot go on."""
