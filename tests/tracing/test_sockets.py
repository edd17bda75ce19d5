"""Addresses in arguments and annotations."""

import pytest

from tests.tracing.traces import inet, inet6, unix
from tracing.sockets import UNREADABLE, Address, address_of, ends_of

pytestmark = pytest.mark.core


@pytest.mark.parametrize("argument, expected", [
    (inet("10.0.0.1", 443), Address("AF_INET", "10.0.0.1", 443)),
    (inet6("2001:db8::1", 53), Address("AF_INET6", "2001:db8::1", 53)),
    (unix("/run/a b\\74x"), Address("AF_UNIX", "/run/a b<x")),
    ('{sa_family=AF_UNIX, sun_path=@"abstract\\0x"}', Address("AF_UNIX", "@abstract\0x")),
    ("{sa_family=AF_UNIX}", Address("AF_UNIX")),
    ('{sa_family=AF_UNSPEC, sa_data="\\0\\0"}', Address("AF_UNSPEC")),
    ("{sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}", Address("AF_NETLINK")),
    ("{sa_family=AF_VSOCK, svm_cid=VMADDR_CID_HOST, svm_port=0x1, svm_flags=0}", Address("AF_VSOCK")),
    ("0x7ffd3a91", UNREADABLE), ("", UNREADABLE), ("NULL", None),
    ('{sa_family=AF_INET, sin_port=htons(1)}', UNREADABLE),
    (inet("999.1.1.1", 1), UNREADABLE),
])
def test_address_is_read_or_said_to_be_unreadable(argument, expected):
    assert address_of(argument) == expected


@pytest.mark.parametrize("host, local", [
    ("127.0.0.1", True), ("127.9.9.9", True), ("0.0.0.0", True), ("10.0.0.1", False), ("169.254.0.1", False)])
def test_loopback_and_any_are_local(host, local):
    assert address_of(inet(host, 1)).is_local is local
    assert address_of(inet6(f"::ffff:{host}", 1)).is_local is local


def test_ipv6_loopback_is_local_and_others_are_not():
    assert address_of(inet6("::1", 1)).is_local and address_of(inet6("::", 1)).is_local
    assert not address_of(inet6("fe80::1%eth0", 1)).is_local


@pytest.mark.parametrize("annotation, family, local, peer", [
    ("TCP:[127.0.0.1:1->127.0.0.1:2]", "AF_INET", "127.0.0.1:1", "127.0.0.1:2"),
    ("TCPv6:[[::1]:1->[::1]:2]", "AF_INET6", "[::1]:1", "[::1]:2"),
    ("UDPv6:[[::]:49110]", "AF_INET6", "[::]:49110", "None"),
    ("UDP:[3949]", "AF_INET", "None", "None"),
    ('UNIX-STREAM:[1->2,"/x"]', "AF_UNIX", "None", "None"),
    ("NETLINK:[ROUTE:9]", "AF_NETLINK", "None", "None"),
    ("socket:[99]", "", "None", "None"),
])
def test_annotation_of_a_socket_shows_its_ends(annotation, family, local, peer):
    ends = ends_of(annotation)
    assert (ends.family, str(ends.local), str(ends.peer)) == (family, local, peer)


@pytest.mark.parametrize("annotation", ["pipe:[9]", "anon_inode:[eventpoll]", "/tmp/TCP:[1]", "", "/dev/null<char 1:3>"])
def test_annotation_of_anything_else_is_no_socket(annotation):
    assert ends_of(annotation) is None
