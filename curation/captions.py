"""When two captions say the same: after NFKC, in one case, with single spaces."""

import hashlib
import unicodedata

CODE_BYTES = 16  # among a billion captions two are taken for one with a chance of 1e-21


def caption_code(text: str) -> bytes:
    """Return what two captions have in common that are the same after NFKC, case and white space."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=CODE_BYTES).digest()
