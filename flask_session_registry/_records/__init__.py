"""Where user sessions are recorded: ``protocols``, implemented in ``sql`` and in ``redis``."""
