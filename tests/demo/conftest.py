"""The small web as a fixture: drawn once a session, served once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.demo.server import SmallWeb
from headrace.demo.web import Site, plan_site


@pytest.fixture(scope="session")
def site() -> Site:
    return plan_site(11)


@pytest.fixture(scope="session")
def small_web(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallWeb]:
    secret: Path = tmp_path_factory.mktemp("private") / "secret.jpg"
    secret.write_bytes(site.secret)
    with SmallWeb(site, secret_path=str(secret)) as running:
        yield running
