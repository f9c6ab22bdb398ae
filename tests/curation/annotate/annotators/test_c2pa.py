"""Assertions on training inside of images: read by a process with limits, the strictest counts."""

import datetime
import io
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from headrace.curation.annotate.annotator import AnnotationBatch
from headrace.curation.annotate.annotators.c2pa import C2pa, C2paConfig, training_use
from headrace.curation.annotate.annotators.c2pa_process import ReaderProcess

CREATED = {
    "label": "c2pa.actions.v2",
    "data": {
        "actions": [{"action": "c2pa.created", "digitalSourceType": "http://cv.iptc.org/newscodes/digitalCapture"}]
    },
}


def picture(kind: str = "JPEG") -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), (9, 80, 200)).save(sink, kind)
    return sink.getvalue()


@pytest.fixture(scope="module")
def sign() -> Callable[..., bytes]:
    """Sign a picture with a certificate that nobody knows."""
    c2pa = pytest.importorskip("c2pa")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def certificate(name: str, key: Any, issuer: Any, issuer_key: Any) -> Any:
        is_root = issuer is None
        names = [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)]
        subject = x509.Name(names)
        began = datetime.datetime(2025, 1, 1)
        made = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer or subject, public_key=key.public_key())
        made = made.serial_number(7).not_valid_before(began).not_valid_after(began + datetime.timedelta(days=36_500))
        usage = x509.KeyUsage(True, False, False, False, False, is_root, is_root, False, False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        made = made.add_extension(x509.BasicConstraints(ca=is_root, path_length=None), True)
        made = made.add_extension(usage, True).add_extension(authority, False)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        if not is_root:
            made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), True)
        return made.sign(issuer_key, hashes.SHA256())

    root, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    top = certificate("root", root, None, root)
    pem = serialization.Encoding.PEM
    chain = certificate("leaf", leaf, top.subject, root).public_bytes(pem) + top.public_bytes(pem)
    key = leaf.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def sign(*assertions: dict[str, Any], kind: str = "JPEG") -> bytes:
        info = c2pa.C2paSignerInfo(alg="es256", sign_cert=chain, private_key=key, ta_url=None)
        manifest = {"title": "x", "claim_generator_info": [{"name": "test"}], "assertions": [CREATED, *assertions]}
        sink = io.BytesIO()
        builder = c2pa.Builder(json.dumps(manifest))
        builder.sign(c2pa.Signer.from_info(info), f"image/{kind.lower()}", io.BytesIO(picture(kind)), sink)
        return sink.getvalue()

    return sign


def assertion(label: str, **uses: str) -> dict[str, Any]:
    prefix = label.partition(".")[0]
    return {"label": label, "data": {"entries": {f"{prefix}.{name}": {"use": use} for name, use in uses.items()}}}


def annotate(*data: bytes | None) -> list[tuple[Any, ...]]:
    count = len(data)
    none: list[Any] = [None] * count
    keys = [str(number) for number in range(count)]
    batch = AnnotationBatch(
        keys=keys, captions=none, data=list(data), sha256=none, headers=none, images=none, errors=none
    )
    found = C2pa(C2paConfig()).annotate(batch)
    return list(zip(*(found[name] for name in C2pa.columns.names), strict=True))


def test_what_an_image_says_of_training_is_found_in_every_format(sign: Callable[..., bytes]) -> None:
    refused = sign(assertion("c2pa.training-mining", ai_training="notAllowed", ai_inference="allowed"))
    asked = sign(assertion("cawg.training-mining", data_mining="constrained", ai_training="allowed"), kind="PNG")
    allowed = sign(assertion("cawg.training-mining", ai_generative_training="allowed", ai_inference="notAllowed"))
    silent = sign(kind="WEBP")
    found = annotate(refused, asked, allowed, silent, picture(), None)
    assert found[0] == ("notAllowed", "c2pa.training-mining: c2pa.ai_training notAllowed", None)
    assert found[1] == ("constrained", "cawg.training-mining: cawg.data_mining constrained", None)
    assert found[2][0] == "allowed"
    assert found[3:] == [(None, None, None)] * 3


def test_hostile_bytes_and_a_reader_that_dies_cost_one_row(sign: Callable[..., bytes]) -> None:
    good = sign(assertion("c2pa.training-mining", ai_training="notAllowed"))
    place = good.index(b"c2pa")
    broken = good[:place] + bytes(200) + good[place + 200 :]
    found = annotate(good[: place + 300], broken, b"c2pa" * 1000, good)
    assert [row[0] for row in found] == [None, None, None, "notAllowed"]

    reader = ReaderProcess()
    assert "manifests" in reader.read(good)
    assert reader._process is not None
    reader._process.send_signal(signal.SIGKILL)
    reader._process.wait()
    assert "could not be read" in reader.read(good)["error"]
    assert "manifests" in reader.read(good)
    reader.close()


@pytest.mark.parametrize("manifests", [None, [], {"a": 1}, {"a": {"assertions": [1, {"label": 2}]}}, {"a": {}}])
def test_a_manifest_that_is_none_says_nothing(manifests: Any) -> None:
    assert training_use(manifests) == (None, None)
