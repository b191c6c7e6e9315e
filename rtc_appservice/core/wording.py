"""Words that pages, reports and notices share, so that they say the same thing the same way."""

from datetime import UTC, datetime

READINESS = {
    "ready": "READY: the room-event backup can be switched off.",
    "not_ready": "NOT READY: do not switch the room-event backup off yet.",
    "insufficient_data": "NOT KNOWN YET: too little was seen to say whether the room-event backup can go.",
}


def moment(at: datetime) -> str:
    """Give a time with its day, UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def how_many(number: int, word: str) -> str:
    """Give a number with its word, in the plural unless it is one."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def plain(text: str) -> str:
    """Give text without anything that a terminal or browser would obey or that would hide its order."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
