"""The bytes of a REST request: bounded in number, in time, in what they unpack to and in what all of them hold."""

import asyncio
import zlib

from aiohttp import web

from serving.errors import RequestError
from serving.server.admission import MAX_REQUEST_BYTES

__all__ = ["Bodies", "BodyRefused", "unpacked"]

BODY_SECONDS = 20.0  # from a request's headers to the end of its body
MAX_MEMBERS = 16  # of a gzip body; each costs a copy of what follows it
BUFFERED = 4 * MAX_REQUEST_BYTES  # bytes of all bodies that have not come to their end


class BodyRefused(Exception):
    """A body that HTTP has a status of its own for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Bodies:
    """Reads bodies as they were sent. For one event loop."""

    def __init__(self) -> None:
        self._buffered = 0

    async def read(self, request: web.Request) -> bytes:
        """The whole body, packed as it may be.

        Raises:
            BodyRefused: it is too large, too slow or not what its headers say.
            RequestError: RESOURCE_EXHAUSTED, all bodies together are too large.
        """
        if (request.content_length or 0) > MAX_REQUEST_BYTES:
            raise _too_large()
        chunks, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.content.iter_any():
                    size += len(chunk)
                    self._buffered += len(chunk)
                    if size > MAX_REQUEST_BYTES:
                        raise _too_large()
                    if self._buffered > BUFFERED:
                        raise RequestError("The server holds too many bodies that are not whole.", "RESOURCE_EXHAUSTED")
                    chunks.append(chunk)
        except TimeoutError as error:
            raise BodyRefused(408, f"The request body was not complete after {BODY_SECONDS:g} seconds.") from error
        except RequestError:  # a ValueError too
            raise
        except (web.RequestPayloadError, ValueError) as error:
            raise BodyRefused(400, "The request body is not of the form that its headers say.") from error
        finally:
            self._buffered -= size
        return b"".join(chunks)


def unpacked(body: bytes, encoding: str) -> bytes:
    """The body without its Content-Encoding; never more than the limit is unpacked.

    Raises:
        BodyRefused: it unpacks to too much, is broken, or packed in another way than gzip or deflate, once.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BodyRefused(415, "`Content-Encoding` should be gzip, deflate or identity.")
    bits = 16 + zlib.MAX_WBITS if encoding != "deflate" else zlib.MAX_WBITS
    if encoding == "deflate" and body[:1] and body[0] & 15 != 8:
        bits = -zlib.MAX_WBITS  # without zlib's header, as some clients have it
    pieces, size = [], 0
    try:
        while True:  # gzip is one member after the other
            stream = zlib.decompressobj(bits)
            piece = stream.decompress(body, MAX_REQUEST_BYTES + 1 - size)
            size += len(piece)
            if size > MAX_REQUEST_BYTES:
                raise _too_large()
            if not stream.eof:
                raise BodyRefused(400, f"The request body can not be unpacked by {encoding}: it ends too soon.")
            pieces.append(piece)
            body = stream.unused_data
            if bits <= zlib.MAX_WBITS or not body.strip(b"\0"):
                return b"".join(pieces)
            if len(pieces) == MAX_MEMBERS:
                raise BodyRefused(400, f"The request body has more than {MAX_MEMBERS} gzip members.")
    except zlib.error as error:
        raise BodyRefused(400, f"The request body can not be unpacked by {encoding}.") from error


def _too_large() -> BodyRefused:
    return BodyRefused(413, f"The request body is larger than {MAX_REQUEST_BYTES} bytes.")
