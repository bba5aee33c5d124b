"""Telemetry on its way upstream: settings, a queue with a spool, a client and a thread per signal.

Nothing here runs on the event loop but :meth:`Forwarder.offer`, which appends to a list. The
client is the standard library's ``http.client`` in a thread of its own: one keep-alive connection
per signal needs no pool, TLS is the same ``ssl``, and the sidecar imports nothing more for it.
"""
