"""The entries of the session store: ``backends`` deletes any, ``purge`` those of ended sessions."""
