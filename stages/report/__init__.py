"""Parts of `heartcut report`: one self-contained page of charts, tables and pictures."""

from pipeline.runtime.cache_folders import use_writable_matplotlib_cache

use_writable_matplotlib_cache()  # the charts of this package are drawn by matplotlib
