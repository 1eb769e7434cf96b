"""Architectures of a configuration, checked before the first stage rather than in a later one."""

from pipeline.errors import ConfigError
from pipeline.models.reused_head import SUFFIX
from pipeline.models.zoo import architectures, unknown_architecture
from stages.config.root import Config


def require_known(config: Config) -> None:
    """Reject a name that is not in the zoo; networks from elsewhere are not imported for this.

    Raises:
        ConfigError: naming the key, and the closest names.
    """
    named = {
        "train_teacher.arch": config.train_teacher.arch,
        "cache_teacher.arch": config.cache_teacher.arch,
        "train_student.arch": config.train_student.arch,
    }
    for key, arch in named.items():
        trunk = arch.partition(SUFFIX)[0]
        if arch and ":" not in arch and trunk not in architectures():
            raise ConfigError(f"{key}: {unknown_architecture(arch)}")
