"""What every request passes first: keys and their scopes, allowances, bounds on body and time.

``middleware`` decides, ``exchange`` carries one request through, ``context`` is what routes know of it, ``scopes`` says which path needs
which scope, ``keys`` and ``rate`` are pure, ``drain`` empties the server before it stops, and
``cli`` is ``vtr keys``.
"""

from vtr_server.gate.context import Caller, RequestContext
from vtr_server.gate.drain import drain_first
from vtr_server.gate.middleware import Gate, install

__all__ = ["Caller", "Gate", "RequestContext", "drain_first", "install"]
