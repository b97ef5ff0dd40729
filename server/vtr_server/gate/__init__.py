"""What every request passes first: keys and their scopes, allowances, bounds on body and time.

``middleware`` decides, ``exchange`` carries one request through, ``scopes`` says which path needs
which scope, ``keys`` and ``rate`` are pure, ``drain`` empties the server before it stops, and
``cli`` is ``vtr keys``.
"""

from vtr_server.gate.drain import drain_first
from vtr_server.gate.middleware import Caller, Gate, install

__all__ = ["Caller", "Gate", "drain_first", "install"]
