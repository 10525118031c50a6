"""The names under which the service answers."""

import pytest

from api.host_guard import list_allowed_hosts
from jobs.settings import Settings


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"localhost", "127.0.0.1"}),
        ({"host": "0.0.0.0"}, {"localhost"}),
        ({"host": "::"}, {"localhost"}),
        ({"host": "fd00::1"}, {"localhost", "[fd00::1]"}),
        ({"host": "10.0.0.7"}, {"localhost", "10.0.0.7"}),
        ({"public_url": "https://Train.Example:8443/medtune"}, {"localhost", "127.0.0.1", "train.example"}),
        ({"public_url": "https://[fd00::2]:8443"}, {"localhost", "127.0.0.1", "[fd00::2]"}),
        ({"allowed_hosts": ["gpu-box", "B.example."]}, {"localhost", "127.0.0.1", "gpu-box", "b.example"}),
    ],
)
def test_allowed_hosts_come_from_the_settings(settings: dict[str, object], names: set[str]) -> None:
    assert list_allowed_hosts(Settings.model_validate(settings)) == names
