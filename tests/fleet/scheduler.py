"""Synapse's appservice scheduler: one transaction at a time; while it is out, the next one collects."""

import random
from dataclasses import dataclass
from typing import Any

from .truth import ToDeviceSent

_LIMIT = 100  #: events, and to-device messages, in one transaction


@dataclass(frozen=True)
class Transaction:
    """A transaction as the appservice receives it; times are milliseconds since the epoch."""

    received_at: int
    body: dict[str, Any]


@dataclass
class _Pushed:
    ready_at: int
    entry: dict[str, Any]
    message: ToDeviceSent | None = None


class Scheduler:
    """Collects events and to-device messages and turns them into transactions."""

    def __init__(self, rng: random.Random, server: str) -> None:
        self._random = rng
        self._domain = ":" + server
        self._pushed: list[_Pushed] = []

    def push_event(self, ready_at: int, event: dict[str, Any]) -> None:
        """Take an event; events keep the order of the stream."""
        self._pushed.append(_Pushed(ready_at, event))

    def push_message(self, ready_at: int, entry: dict[str, Any], message: ToDeviceSent) -> None:
        """Take a to-device message; the log's line of it learns when it is received."""
        self._pushed.append(_Pushed(ready_at, entry, message))

    def transactions(self) -> list[Transaction]:
        """Give all transactions in order."""
        newest = 0
        for pushed in self._pushed:
            if pushed.message is None:
                newest = pushed.ready_at = max(pushed.ready_at, newest)
        waiting = sorted(self._pushed, key=lambda pushed: pushed.ready_at)
        transactions = []
        free_at = position = 0
        while position < len(waiting):
            sent_at = max(free_at, waiting[position].ready_at)
            received_at = sent_at + 3
            events: list[dict[str, Any]] = []
            messages: list[dict[str, Any]] = []
            while position < len(waiting) and waiting[position].ready_at <= sent_at:
                pushed = waiting[position]
                into = events if pushed.message is None else messages
                if len(into) >= _LIMIT:
                    break
                into.append(pushed.entry)
                if pushed.message is not None:
                    pushed.message.received_at = received_at
                position += 1
            transactions.append(Transaction(received_at, self._body(events, messages, received_at)))
            free_at = received_at + self._random.randint(5, 25)
        return transactions

    def _body(self, events: list[dict[str, Any]], messages: list[dict[str, Any]], received_at: int) -> dict[str, Any]:
        counts: dict[str, Any] = {}
        for entry in events:
            age = received_at - entry["origin_server_ts"]
            before = {name: entry[name] for name in ("prev_content", "replaces_state") if name in entry}
            entry["age"] = age
            entry["unsigned"] = {"age": age, **before}
            if entry["sender"].endswith(self._domain):
                counts[entry["sender"]] = {"SOMEDEVICE": {"signed_curve25519": 50}}
        body: dict[str, Any] = {
            "events": events,
            "ephemeral": [],
            "de.sorunome.msc2409.ephemeral": [],
            "de.sorunome.msc2409.to_device": messages,
        }
        if counts:
            body["org.matrix.msc3202.device_one_time_key_counts"] = counts
            body["org.matrix.msc3202.device_one_time_keys_count"] = counts
        return body
