"""Errors of the service. The class docstring is what the operator reads; details are attributes."""


class RtcAppserviceError(Exception):
    """rtc-appservice could not do what was asked."""

    def __str__(self) -> str:
        """Give the detail if there is one, else the class docstring."""
        detail = super().__str__()
        return detail or (self.__doc__ or "").strip()


class ConfigError(RtcAppserviceError):
    """The configuration cannot be used."""


class InputError(RtcAppserviceError):
    """An input file could not be read."""


class StoreUnavailable(RtcAppserviceError):
    """The database did not take the write; the homeserver has to send the transaction again."""


class DataRefused(StoreUnavailable):
    """The database refused what was to be written; sent again, it would refuse it again."""


class SchemaBehind(RtcAppserviceError):
    """The database schema is not at the newest migration; run `rtc-appservice db upgrade`."""


class PortUnavailable(RtcAppserviceError):
    """A port cannot be listened on."""


class ServiceFailed(RtcAppserviceError):
    """A part of the service ended by an error of its own; the log says which and where."""


class PostHogRefused(RtcAppserviceError):
    """PostHog did not do what was asked."""
