"""ARP and NDP answers as an independent reader, scapy, understands them."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from netns.announce import announcement, answer

OURS, THEIRS = "0a:00:00:00:00:01", "0a:00:00:00:00:02"
MAC = bytes.fromhex(OURS.replace(":", ""))
V4, V6 = "198.51.100.7", "2001:db8:198::7"
HELD = frozenset((V4, V6))


def arp(**fields: object) -> bytes:
    return bytes(Ether(src=THEIRS, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=THEIRS, psrc="192.168.1.1", pdst=V4, **fields))


def solicitation(target: str = V6, src: str = "fd00:1::1", hlim: int = 255) -> bytes:
    packet = IPv6(src=src, dst="ff02::1:ff00:7", hlim=hlim) / ICMPv6ND_NS(tgt=target)
    if src != "::":
        packet /= ICMPv6NDOptSrcLLAddr(lladdr=THEIRS)
    return bytes(Ether(src=THEIRS, dst="33:33:ff:00:00:07") / packet)


def test_an_arp_question_is_answered_to_who_asked() -> None:
    reply = Ether(answer(arp(op=1), MAC, HELD))
    assert (reply.src, reply.dst) == (OURS, THEIRS)
    found = reply[ARP]
    assert (found.op, found.hwsrc, found.psrc, found.hwdst, found.pdst) == (2, OURS, V4, THEIRS, "192.168.1.1")


def test_a_solicitation_is_answered_to_who_asked_with_a_right_checksum() -> None:
    reply = Ether(answer(solicitation(), MAC, HELD))
    assert (reply.src, reply.dst) == (OURS, THEIRS)
    assert (reply[IPv6].src, reply[IPv6].dst, reply[IPv6].hlim) == (V6, "fd00:1::1", 255)
    found = reply[ICMPv6ND_NA]
    assert (found.tgt, found.S, found.O, found.R) == (V6, 1, 1, 0)
    assert reply[ICMPv6NDOptDstLLAddr].lladdr == OURS
    assert_checksum(reply)


def assert_checksum(frame: Ether) -> None:
    seen = frame[ICMPv6ND_NA].cksum
    again = frame.copy()
    del again[ICMPv6ND_NA].cksum
    assert Ether(bytes(again))[ICMPv6ND_NA].cksum == seen


@pytest.mark.parametrize(
    "frame",
    [
        arp(op=2),
        bytes(Ether(src=THEIRS) / ARP(op=1, hwsrc=THEIRS, psrc="192.168.1.1", pdst="198.51.100.8")),
        bytes(Ether(src=THEIRS) / ARP(op=1, hwsrc=THEIRS, psrc=V4, pdst=V4)),
        arp(op=1)[:30],
        solicitation(target="2001:db8:198::8"),
        solicitation(hlim=254),
        solicitation()[:60],
        b"",
    ],
    ids=["reply", "other address", "announcement", "cut short", "other target", "from afar", "cut short v6", "nothing"],
)
def test_anything_else_is_passed_over(frame: bytes) -> None:
    assert answer(frame, MAC, HELD) is None


def test_who_asks_without_an_address_is_told_with_everybody() -> None:
    reply = Ether(answer(solicitation(src="::"), MAC, HELD))
    assert (reply.dst, reply[IPv6].dst, reply[ICMPv6ND_NA].S) == ("33:33:00:00:00:01", "ff02::1", 0)
    assert_checksum(reply)


def test_a_move_is_told_to_everybody() -> None:
    v4, v6 = Ether(announcement(V4, MAC)), Ether(announcement(V6, MAC))
    assert (v4.dst, v4[ARP].psrc, v4[ARP].pdst, v4[ARP].hwsrc) == ("ff:ff:ff:ff:ff:ff", V4, V4, OURS)
    assert (v6.dst, v6[ICMPv6ND_NA].tgt, v6[ICMPv6ND_NA].O) == ("33:33:00:00:00:01", V6, 1)
    assert_checksum(v6)
