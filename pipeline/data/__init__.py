"""Images in: sources, replayable views, loaders."""

from pipeline.runtime.cache_folders import use_writable_numba_cache

use_writable_numba_cache()  # the modules of this package compile functions when they are imported
