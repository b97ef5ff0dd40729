"""What every request passes first: keys and their scopes, allowances, bounds on body and time.

``middleware`` decides, ``exchange`` carries one request through, ``context`` is what routes know of it, ``scopes`` says which path needs
which scope, ``keys`` and ``rate`` are pure, ``drain`` empties the server before it stops, and
``cli`` is ``vtr keys``.
"""
