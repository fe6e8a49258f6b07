"""What operators run: the commands in ``cli``, the ``doctor``, and the ``maintenance`` (prune)."""
