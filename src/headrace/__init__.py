"""Headrace: curate image shards from URL lists, stream mixtures of them, pretrain on them.

The four floors are `headrace.shards`, `headrace.curation`, `headrace.pipeline` and `headrace.train`; importing this
package imports none of them.
"""

__version__ = "0.2.0.dev0"
