"""The one part that pyproject.toml cannot say well: a small C extension that may be missing.

Without a C compiler the package installs all the same, and the stream decodes whole JPEGs.
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
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
