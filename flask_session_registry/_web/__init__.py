"""The page on which users see where they are signed in."""
