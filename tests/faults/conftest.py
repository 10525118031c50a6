"""One cluster for all tests of the process: each finds it whole and leaves no job behind."""

from collections.abc import Iterator

import pytest

from tests.faults.harness import Cluster

SECRETS = {"HF_TOKEN": "hf_the-token-of-the-hub", "AWS_SECRET_ACCESS_KEY": "the-key-of-the-store"}
"""Of the workers, which no trainer may know."""


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), environment=SECRETS) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    shared_cluster.heal()
    shared_cluster.forget()
    yield shared_cluster
    shared_cluster.heal()
    shared_cluster.end_all_jobs()
