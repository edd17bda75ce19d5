"""A server of each kind for a whole test module. A test that changes its server starts one of its own."""

from collections.abc import Iterator

import pytest

from tests import serving


@pytest.fixture(scope="module")
def native_server() -> Iterator[serving.Server]:
    with serving.start() as server:
        yield server


@pytest.fixture(scope="module")
def python_server() -> Iterator[serving.Server]:
    with serving.start(native=False) as server:
        yield server


@pytest.fixture(scope="module", params=["native", "python"])
def server(request: pytest.FixtureRequest) -> serving.Server:
    """Both kinds, one after the other."""
    return request.getfixturevalue(f"{request.param}_server")
