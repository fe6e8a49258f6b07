"""What happens to one request and its session, in this order.

``hooks`` begins and ends each request. ``check`` decides whether its session is active, ``refusal``
makes it anonymous otherwise. ``auth_events`` hears of logins and logouts; ``persistence`` records
at the end of the request what became of the session, by ``record_login`` and ``record_logout``.
``sync`` lets the session follow a committed revocation. ``deferred`` does the rest after the
response. What is known meanwhile is in ``context``.
"""
