"""What a socket answers while its connect is under way: as a connecting kernel socket would.

A socket takes this class on while it is pending and puts it off when the connect has ended
and somebody has noticed, so that an established one has its own methods only. No byte may
ever go into or come out of the placeholder.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
from collections.abc import Hashable
from typing import Any

from .pending import Pending


def become_connecting(sock: Any, pending: Pending) -> None:
    """Have a socket answer for ``pending`` from now on."""
    pending.join(sock)
    sock._state = pending
    plain: Any = type(sock)
    sock.__class__ = _connecting(plain)


@functools.cache
def _connecting(cls: Hashable) -> type:
    """Return ``cls`` with the answers of this room; made once, of the same layout."""
    assert isinstance(cls, type)
    return type(cls.__name__, (Connecting, cls), {"__slots__": (), "_settled_class": cls})


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Connecting:
    """Mixed into the class of a socket whose connect is not over, or not noticed yet."""

    __slots__ = ()

    _state: Any
    _settled_class: type

    def _settle(self) -> int:
        """Be an ordinary socket again; return the errno of the connect."""
        pending: Pending = self._state
        error = pending.result()
        self._state = pending.names
        self.__class__ = self._settled_class
        return error

    def _through(self, method: str, *args: Any) -> Any:
        """Send or receive: on the connection if it is there; raises as the kernel does."""
        if not self._state.done:
            raise _error(errno.EAGAIN)
        error = self._settle()
        if error:
            raise _error(error)
        return getattr(self, method)(*args)

    def send(self, *args: Any) -> Any:
        """As socket.send; so are those below."""
        return self._through("send", *args)

    def sendall(self, *args: Any) -> Any:
        return self._through("sendall", *args)

    def sendto(self, *args: Any) -> Any:
        return self._through("sendto", *args)

    def sendmsg(self, *args: Any) -> Any:
        return self._through("sendmsg", *args)

    def recv(self, *args: Any) -> Any:
        return self._through("recv", *args)

    def recv_into(self, *args: Any) -> Any:
        return self._through("recv_into", *args)

    def recvfrom(self, *args: Any) -> Any:
        return self._through("recvfrom", *args)

    def recvfrom_into(self, *args: Any) -> Any:
        return self._through("recvfrom_into", *args)

    def recvmsg(self, *args: Any) -> Any:
        return self._through("recvmsg", *args)

    def recvmsg_into(self, *args: Any) -> Any:
        return self._through("recvmsg_into", *args)

    def shutdown(self, how: int) -> Any:
        """Before the connection is there this ends the connect, whatever ``how`` is."""
        pending: Pending = self._state
        if not pending.done:
            pending.abort()
        elif pending.failed:
            raise _error(errno.ENOTCONN)
        else:
            self._settle()
            return self.shutdown(how)
        return None

    def connect_ex(self, address: Any) -> int:
        """Tell how the connect stands; an error is told once."""
        if not self._state.done:
            return errno.EALREADY
        return self._settle() or self.connect_ex(address)

    def connect(self, address: Any) -> None:
        """As connect_ex, but raises."""
        error = self.connect_ex(address)
        if error:
            raise _error(error)

    def getsockopt(self, *args: Any) -> Any:
        """SO_ERROR is ours to tell, and while pending the options are the original's."""
        pending: Pending = self._state
        if not pending.done:
            return pending.getsockopt(*args)
        if args[:2] == (socket.SOL_SOCKET, socket.SO_ERROR):
            return self._settle()
        return super().getsockopt(*args)  # type: ignore[misc]

    def setsockopt(self, *args: Any) -> None:
        """Set an option, on the socket that will be there in the end."""
        pending: Pending = self._state
        if pending.done:
            super().setsockopt(*args)  # type: ignore[misc]
        else:
            pending.setsockopt(*args)

    def getsockname(self) -> Any:
        """The original's name until the connection is there."""
        pending: Pending = self._state
        if not pending.done:
            return pending.name()
        if pending.failed:
            return super().getsockname()  # type: ignore[misc]
        self._settle()
        return self.getsockname()

    def getpeername(self) -> Any:
        """There is no peer before the connection is there."""
        pending: Pending = self._state
        if not pending.done or pending.failed:
            raise _error(errno.ENOTCONN)
        self._settle()
        return self.getpeername()

    def bind(self, address: Any) -> None:
        """A socket that connects has its address already."""
        if not self._state.done:
            raise _error(errno.EINVAL)
        super().bind(address)  # type: ignore[misc]

    def listen(self, *args: Any) -> None:
        """A socket that connects cannot listen."""
        if not self._state.done:
            raise _error(errno.EINVAL)
        super().listen(*args)  # type: ignore[misc]

    def _accept(self) -> Any:
        if not self._state.done:
            raise _error(errno.EINVAL)
        return super()._accept()  # type: ignore[misc]

    def close(self) -> None:
        """Close; with the last of its kind the connect is withdrawn."""
        self._state.leave(self.fileno())  # type: ignore[attr-defined]
        super().close()  # type: ignore[misc]
