"""Response headers."""

from flask import Response, current_app, request


def protect(response: Response) -> Response:
    headers = response.headers
    headers.setdefault(
        "Content-Security-Policy",
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self';"
        " frame-ancestors 'none'",
    )
    headers.setdefault("X-Content-Type-Options", "nosniff")
    # The link that resets a password is a secret. (Not 'no-referrer': on HTTPS, Flask-WTF checks
    # where a form came from.)
    headers.setdefault("Referrer-Policy", "same-origin")
    if request.endpoint != "static":
        # Every page contains a token, and some are private.
        headers.setdefault("Cache-Control", "no-store")
    if current_app.config["SESSION_COOKIE_SECURE"]:
        headers.setdefault("Strict-Transport-Security", "max-age=31536000")
    return response
