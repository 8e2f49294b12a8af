"""What a server's answer means: whether a fault may pass, which file it is, which part of it. RFC 9110."""

import http.client
import re
import ssl
import urllib.error
from http import HTTPStatus

PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
"""Refusals that pass, besides the server's own faults, 500 and above."""


class BrokenError(Exception):
    """A connection that failed in a way that may pass."""


class RefusedError(Exception):
    """An address that cannot give the file."""


def failure(error: OSError | http.client.HTTPException) -> BrokenError | RefusedError:
    """What became of a connection, in words."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return RefusedError(f"its certificate is not trusted ({cause.verify_message})")
    if isinstance(cause, TimeoutError):
        return BrokenError("does not answer in time")
    return BrokenError(str(cause) or type(cause).__name__)


def refusal(error: urllib.error.HTTPError) -> BrokenError | RefusedError:
    """What an answer of 300 and above means."""
    told = f"answers {error.code} {error.reason}".strip()
    passes = error.code in PASSING or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return BrokenError(told) if passes else RefusedError(told)


def validator_of(response: http.client.HTTPResponse) -> str | None:
    """What may stand in If-Range: a strong ETag, else the date; weak ETags must not."""
    tag = response.headers.get("ETag")
    if tag is not None and not tag.startswith("W/"):
        return str(tag)
    date = response.headers.get("Last-Modified")
    return None if date is None else str(date)


def length_of(response: http.client.HTTPResponse) -> int | None:
    """The bytes that a whole answer promises, where it does."""
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def range_of(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """The first byte that a partial answer holds, and the size of the whole file, where it is told.

    Raises:
        RefusedError: it does not say.
    """
    said = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", said.strip())
    if match is None:
        raise RefusedError(f"sends a part without saying which ({said!r})")
    return int(match[1]), None if match[2] == "*" else int(match[2])
