"""cache push, pull: copying complete caches between this machine and the team's place."""

from pipeline.artefacts.cache.teacher_cache import TeacherCache
from pipeline.artefacts.cache.transfer import copy_cache
from pipeline.artefacts.objects.addresses import open_objects
from pipeline.artefacts.objects.remote import require_conditional_create
from pipeline.errors import ConfigError
from stages.cache.info import configuration, places
from stages.caches import cache_place


def push(what: str, root: str | None, overrides: list[str], *, single_writer: bool) -> list[str]:
    """Copy a cache, or those of a configuration, to ``root``; return the addresses of the copies.

    Raises:
        ConfigError: if there is no destination.
        ArtefactNotFound: if there is no complete cache.
        ArtefactMismatch: if the destination has other numbers under the same id.
    """
    if root is None:
        root = configuration(what, overrides).share if what.endswith(".toml") else ""
    if not root:
        raise ConfigError(
            f"{what}: no destination to push to (expected PLACE, or `share` in a configuration). "
            f"Run `heartcut cache push {what} PLACE`."
        )
    target = open_objects(root, single_writer=single_writer)
    if not single_writer:
        require_conditional_create(target)
    copies = []
    for place in places(what, overrides):
        cache = TeacherCache.open(place)
        copies.append(copy_cache(cache, cache_place(target, cache.id)).path)
    return copies


def pull(address: str, root: str) -> str:
    """Copy the cache at ``address`` into a folder of caches; return the address of the copy."""
    cache, target = TeacherCache.open(address), open_objects(root)
    require_conditional_create(target)
    return copy_cache(cache, cache_place(target, cache.id)).path
