"""Error pages."""

from flask import Flask, render_template
from flask.typing import ResponseReturnValue
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException, SecurityError


def register(app: Flask) -> None:
    app.register_error_handler(HTTPException, _show)


def _show(error: HTTPException) -> ResponseReturnValue:
    # Under an untrusted host name, the app can't build its own URLs.
    if error.response is not None or isinstance(error, SecurityError):
        return error
    text = error.description
    if isinstance(error, CSRFError):
        text = "This page was open for too long. Go back, load it again, and try once more."
    return render_template("error.html", title=error.name, text=text), error.code or 500
