"""
Stage 6: asks PostHog whether it takes the project's key, for `doctor`.

Not by a batch: PostHog answers 200 to one before it has looked up whose key it is, and an event would stay. `/flags` on
the same host (PostHog's documentation of the endpoint) needs the project's key and keeps nothing; a key it does not
know is refused with 401. A project over its quota of flags has a key that is known.
"""

import logging

from rtc_appservice.core.installation import Answer

TIMEOUT_SECONDS = 10.0
_NOBODY = "rtc-appservice-doctor"


def ask_key(api_key: str, host: str) -> Answer:
    """Send one request, blocking, and give what came of it; raises on nothing that a server or network may do."""
    from posthog.request import APIError, QuotaLimitError, flags

    logging.getLogger("posthog").setLevel(logging.WARNING)  # at debug it logs whole bodies
    try:
        answer = flags(api_key, host, timeout=TIMEOUT_SECONDS, max_retries=0, distinct_id=_NOBODY, geoip_disable=True)
    except QuotaLimitError:
        return Answer(status=200, body={"flags": {}})
    except APIError as error:
        return Answer(status=int(error.status))
    except ValueError:  # not JSON
        return Answer(status=200)
    except OSError as error:  # what requests raises is one, whatever went wrong on the way
        return Answer(problem=type(error).__name__)
    except TypeError:  # it looks for a text in an error body that is JSON but no object
        return Answer(problem="an error that is not PostHog's")
    return Answer(status=200, body=answer if isinstance(answer, dict) else {})
