"""How the sessions of a user end, in the transaction that changes the password or asks for it.

``password_watch`` sees the change in a flush, ``lost_updates`` refuses a stale one, ``revoke`` ends
the sessions in the same transaction, and ``after_commit`` finishes. ``fingerprint`` says which
password a session was opened with, ``password_history`` which one a login was checked against.
"""
