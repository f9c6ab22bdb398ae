"""Which images are taken at all, judged by their header before anything is decoded."""

from headrace.curation.fetch.config import FetchConfig
from headrace.curation.fetch.errors import FetchError
from headrace.shards.images.header import ImageHeader


def check_limits(header: ImageHeader, config: FetchConfig) -> None:
    """Raise FetchError: `image-format`, `image-too-small`, `image-too-large` or `image-too-long`."""
    short, long = sorted((header.width, header.height))
    size = f"{header.width} x {header.height}"
    if config.formats and header.format not in config.formats:
        raise FetchError("image-format", f"the image is {header.format}, fetch.formats has {', '.join(config.formats)}")
    if short < config.min_image_size:
        raise FetchError("image-too-small", f"{size}: a side under {config.min_image_size}")
    if config.max_image_area is not None and short * long > config.max_image_area:
        raise FetchError("image-too-large", f"{size}: over {config.max_image_area} pixels")
    if config.max_aspect_ratio is not None and long > short * config.max_aspect_ratio:
        raise FetchError("image-too-long", f"{size}: one side over {config.max_aspect_ratio:g} times the other")
