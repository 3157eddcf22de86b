"""Personal data: what counts, what does not, and that none of it is shown."""

from __future__ import annotations

import pytest

from lora_scripts.doctor.texts import privacy


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to anna.b@web-mail.de please", "email"),
        ("call +49 170 1234567", "phone"),
        ("+1 (415) 555-2671 is mine", "phone"),
        ("(555) 234-5678", "phone"),
        ("phone: 030 1234567", "phone"),
        ("手机号13812345678", "phone"),
        ("+86 138-1234-5678", "phone"),
        ("DE89 3704 0044 0532 0130 00", "iban"),
        ("GB82WEST12345698765432", "iban"),
        ("card 4111 1111 1111 1111 please", "card"),
        ("it is 378282246310005", "card"),
        ("身份证110105198807141234", "id_number"),
        ("from 93.184.216.34 at noon", "ip"),
        ("AKIAIOSFODNN7EXAMPLE", "key"),
        ("token ghp_" + "a1B2" * 9, "key"),
        ("sk-abcdefghij0123456789XYZ", "key"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----", "key"),
    ],
)
def test_found_and_masked(text: str, kind: str) -> None:
    (hit,) = privacy.hits(text)
    assert hit.kind == kind
    masked = privacy.masked(text)
    assert hit.text not in masked
    assert "***" in masked
    assert privacy.hits(masked) == []


@pytest.mark.parametrize(
    "text",
    [
        "order 20391187266 and 订单号 13812345678 没到",
        "order 4111111111111111 shipped",
        "4111 1111 1111 1112",
        "DE89 3704 0044 0532 0130 01",
        "110105198807141235 and 110105198813141234",
        "version 12.4.33.101, 192.168.1.22, 127.0.0.1, 1.2.3.4 and 300.1.2.3",
        "tracking 1Z999AA10123456784, isbn 9783161484100",
        "2024-05-13 14:22, 12 345 678 items for 1.234,56",
        "support@shop.com, me@example.com",
        "sk-1 and the risk-averse",
    ],
)
def test_left_alone(text: str) -> None:
    assert privacy.hits(text) == []


def test_what_is_cut_off_is_masked_first() -> None:
    quoted = privacy.quoted("x" * 110 + " 4111 1111 1111 1111")
    assert len(quoted) <= privacy.QUOTED + 3
    assert "4111" not in quoted
