"""Where webhooks may go, and where not."""

from ipaddress import ip_address, ip_network

import pytest

from jobs.errors import InvalidRequest
from jobs.webhooks.targets import Target, find_address, is_allowed, parse_target

SPECIAL = {
    "loopback": ("127.0.0.1", "127.8.9.10", "::1"),
    "private": ("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    "link-local": ("169.254.169.254", "169.254.0.1", "fe80::1"),
    "unique local": ("fc00::1", "fd00:ec2::254"),
    "shared by providers": ("100.64.0.1", "100.100.100.200", "100.127.255.255"),
    "this network": ("0.0.0.0", "0.1.2.3", "::"),
    "multicast": ("224.0.0.1", "224.0.1.1", "239.255.255.250", "ff02::1", "ff0e::1"),
    "broadcast and reserved": ("255.255.255.255", "240.0.0.1"),
    "documentation and tests": ("192.0.2.1", "198.18.0.1", "203.0.113.1", "2001:db8::1"),
    "metadata of clouds": ("192.0.0.192", "168.63.129.16"),
    "IPv4 inside IPv6": (
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1", "::169.254.169.254"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::1", "2001:0:7f00:1::1"),
    ),
    "site-local": ("fec0::1",),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_special_addresses_are_refused(kind: str) -> None:
    assert [address for address in SPECIAL[kind] if is_allowed(ip_address(address), [])] == []


def test_public_addresses_are_allowed() -> None:
    for address in ("93.184.215.14", "1.1.1.1", "2606:4700::1111", "::ffff:93.184.215.14"):
        assert is_allowed(ip_address(address), []), address


def test_the_operator_allows_networks_and_no_others() -> None:
    allowed = [ip_network("10.20.0.0/16"), ip_network("fd12::/16")]

    for address, expected in [
        ("10.20.3.4", True),
        ("::ffff:10.20.3.4", True),
        ("fd12::1", True),
        ("10.21.0.1", False),
        ("fd13::1", False),
        ("127.0.0.1", False),
    ]:
        assert is_allowed(ip_address(address), allowed) is expected, address


def test_a_url_is_read_as_it_is_dialled() -> None:
    assert parse_target("https://Hooks.Example/a/b?c=d", allow_http=False) == Target(
        "https", "hooks.example", 443, "/a/b?c=d"
    )
    assert parse_target("https://hooks.example:8443", allow_http=False).host_header == "hooks.example:8443"
    assert parse_target("http://[2606:4700::1]/", allow_http=True).host_header == "[2606:4700::1]"


@pytest.mark.parametrize(
    "url",
    [
        "hooks.example",
        "//hooks.example/",
        "http://hooks.example/",
        "ftp://hooks.example/",
        "file:///etc/passwd",
        "https:///path",
        "https://user:password@hooks.example/",
        "https://@hooks.example/",
        "https://public.example\\@127.0.0.1/",
        "https://hooks.example/#fragment",
        "https://hooks.example:0/",
        "https://hooks.example:99999/",
        "https://hooks.example:port/",
        "https://hooks example/",
        "https://hooks.example/\r\nX-Injected: yes",
        "https://hooks.example/\0",
        "https://h\u00f6oks.example/",
        "https://[::1",
        "https://%6c%6fcalhost/",
        "https://hooks.example/" + "a" * 2000,
    ],
)
def test_urls_that_could_be_read_in_two_ways_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_target(url, allow_http=False)
    assert (refusal.value.code, refusal.value.param) == ("invalid_webhook_url", "url")


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1", "localhost", "0"])
def test_other_ways_to_write_an_address_are_judged_by_what_they_mean(host: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        find_address(parse_target(f"https://{host}/", allow_http=False), [])
    assert refusal.value.code == "webhook_address_refused"


def test_a_name_without_an_address_is_a_clear_error() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        find_address(parse_target("https://nowhere.invalid/", allow_http=False), [])
    assert refusal.value.code == "webhook_host_unknown"
