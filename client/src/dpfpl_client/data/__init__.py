"""A site's labelled images: read from where they are, split once by content, and dealt out when sites are simulated.

::

    folder | csv | questions | huggingface | digits | shapes -> labels -> digests -> split -> partition -> SiteData

Needs NumPy and Pillow, and no torch. Nothing here writes to the data, and no name or pixel is meant to leave the site.
"""

from dpfpl_client.data.load import Pool, count_labels, list_classes, load_pool, load_site_data, read_pool
from dpfpl_client.data.partition import partition_sites
from dpfpl_client.data.records import (
    VIEWPOINTS,
    DataProblem,
    ImageRecord,
    ImageSource,
    SiteData,
    apply_viewpoint,
    left_out,
)
from dpfpl_client.data.settings import DataSettings

__all__ = [
    "VIEWPOINTS",
    "DataProblem",
    "DataSettings",
    "ImageRecord",
    "ImageSource",
    "Pool",
    "SiteData",
    "apply_viewpoint",
    "count_labels",
    "left_out",
    "list_classes",
    "load_pool",
    "load_site_data",
    "partition_sites",
    "read_pool",
]
