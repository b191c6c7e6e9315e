"""Stage 2: what may be kept of a secret or an identifier: its hash under a key of the deployment."""

import hashlib
from typing import Any

from rtc_appservice.core.strip import Tagger, comparison_tag


class Keyed:
    """Makes identities and comparison tags; without the deployment secret they link nothing."""

    def __init__(self, secret: bytes, *, comparison_tags: bool = True) -> None:
        """Take the deployment secret; `comparison_tags` off: no media key is compared with another."""
        self._secret = secret
        self._identity_key = hashlib.sha256(b"identity\0" + secret).digest()
        self._comparison_tags = comparison_tags

    def identity(self, *parts: str) -> str:
        """Give a keyed hash as 32 hex digits: equal input, equal identity; nothing can be read back."""
        return hashlib.blake2b(
            "\0".join(parts).encode(errors="surrogatepass"), key=self._identity_key, digest_size=16
        ).hexdigest()

    def tagger(self, room_id: Any) -> Tagger:
        """Give what makes the comparison tags of one room."""
        if not self._comparison_tags or not isinstance(room_id, str):
            return lambda key: None
        return lambda key: comparison_tag(self._secret, room_id, key)
