"""The one part that pyproject.toml cannot say well: two small C extensions that may be missing.

Without a C compiler the package installs all the same: the stream decodes whole JPEGs, and fetch resizes by NumPy.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "headrace.pipeline.decode._jpeg_region",
            ["native/jpeg_region.c"],
            include_dirs=["native"],
            depends=[f"native/libjpeg-turbo/{name}.h" for name in ("jpeglib", "jmorecfg", "jconfig")],
            libraries=["dl"],
            py_limited_api=True,
            optional=True,
        ),
        Extension("headrace.shards.images._area", ["native/area.c"], py_limited_api=True, optional=True),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
