"""Signing up, signing in and out, and resetting a forgotten password."""

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from flask import (
    Blueprint,
    Flask,
    current_app,
    flash,
    jsonify,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_fresh, login_user, logout_user
from flask_wtf import FlaskForm

from . import mail, reset
from .extensions import db, login_manager, sessions
from .forms import ForgotPasswordForm, NewPasswordForm, SignInForm, SignUpForm
from .models import User

blueprint = Blueprint("auth", __name__)

#: What to tell a visitor whose session was rejected.
REASONS = {
    "password_changed": "You were signed out because your password was changed on another device.",
    "revoked": "You were signed out from another device.",
    "logged_out": "You have signed out.",
    "inactive": "Your account is not active.",
    "expired": "You were signed out because you have been away for long.",
}


@blueprint.route("/signup", methods=["GET", "POST"])
def sign_up() -> ResponseReturnValue:
    form = SignUpForm()
    if form.validate_on_submit():
        user = User(email=form.email.data, name=form.name.data)
        user.set_password(form.password.data)
        db.session.add(user)
        try:
            db.session.commit()
        except sa.exc.IntegrityError:
            # This reveals who has an account. To avoid that, send a confirmation link to the
            # address.
            db.session.rollback()
            form.email.errors = ["There is an account with this address already."]
        else:
            login_user(user)
            return redirect(url_for("account.index"))
    return _page("auth/sign_up.html", form)


@blueprint.route("/signin", methods=["GET", "POST"])
def sign_in() -> ResponseReturnValue:
    if request.method == "GET" and current_user.is_authenticated and login_fresh():
        return redirect(_next())
    _say_why_signed_out()
    form = SignInForm(email=getattr(current_user, "email", None), remember=_is_remembered())
    if form.validate_on_submit():
        user = User.authenticate(form.email.data, form.password.data)
        if user is not None:
            if user.is_password_hash_outdated:
                with sessions.same_credentials(user):
                    user.set_password(form.password.data)
                    db.session.commit()
            login_user(user, remember=form.remember.data)
            return redirect(_next())
    if form.is_submitted():
        # The same message whatever was wrong.
        form.password.errors = ["There is no account with this address and password."]
        form.email.errors = ()
    return _page("auth/sign_in.html", form)


@blueprint.post("/signout")
def sign_out() -> ResponseReturnValue:
    logout_user()
    flash("You have signed out.")
    return redirect(url_for("auth.sign_in"))


@blueprint.route("/forgot", methods=["GET", "POST"])
def forgot_password() -> ResponseReturnValue:
    form = ForgotPasswordForm()
    if form.validate_on_submit():
        user = User.with_email(form.email.data)
        if user is not None:
            link = _link("auth.reset_password", token=reset.make_token(user))
            mail.send(
                user.email,
                subject="Choose a new password",
                text=f"To choose a new password, open this link:\n{link}",
            )
        flash("If there is an account with this address, we have sent a link to it.")
        return redirect(url_for("auth.sign_in"))
    return _page("auth/forgot_password.html", form)


@blueprint.route("/reset/<token>", methods=["GET", "POST"])
def reset_password(token: str) -> ResponseReturnValue:
    user = reset.find_user(token)
    if user is None:
        flash("This link is too old, or has been used. Ask for a new one.")
        return redirect(url_for("auth.forgot_password"))
    form = NewPasswordForm()
    if form.validate_on_submit():
        # The change ends all of the user's sessions except the one it is made in, so log out first.
        if current_user == user:
            logout_user()
        user.set_password(form.password.data)
        db.session.commit()
        flash("Your password is changed. Sign in with the new one.")
        return redirect(url_for("auth.sign_in"))
    return _page("auth/reset_password.html", form)


@blueprint.get("/whoami")
def whoami() -> ResponseReturnValue:
    email = current_user.email if current_user.is_authenticated else None
    return jsonify(user=email, reason=sessions.rejected)


def tell_of_new_device(_app: Flask, user_session_id: UUID, user_id: int, new_device: bool) -> None:
    """Tell the owner, so that someone who knows the password can't get in unnoticed."""
    if not new_device:
        return
    user = db.session.get_one(User, user_id)
    device = next((row for row in sessions.active(user) if row.id == user_session_id), None)
    # It may have ended already: the password may have changed meanwhile.
    if device is not None:
        facts = {
            "time": device.created_at.strftime("%Y-%m-%d %H:%M UTC"),
            "address": device.ip_address or "an unknown address",
            "device": sessions.device_name(device) or "an unknown device",
            "end_link": _link("session_registry.revoke", id=device.id),
            "password_link": _link("account.change_password"),
        }
        mail.send(
            user.email,
            subject="A new device has signed in to your account",
            text=render_template("mail/new_device.txt", **facts),
            html=render_template("mail/new_device.html", **facts),
        )


@login_manager.unauthorized_handler
def ask_to_sign_in() -> ResponseReturnValue:
    accepted = request.accept_mimetypes
    if accepted["application/json"] > accepted["text/html"]:
        return _problem(401, "Please sign in.")
    _say_why_signed_out()
    here = request.full_path.rstrip("?") if request.method == "GET" else None
    return redirect(url_for("auth.sign_in", next=here))


def _say_why_signed_out() -> None:
    # Not for a late request from before a rotation: this browser is signed in, and saving a message
    # would replace its session.
    if sessions.rejected not in (None, "rotated"):
        flash(_why_signed_out())


def _why_signed_out() -> str:
    return REASONS.get(sessions.rejected or "", "Your session has ended. Please sign in again.")


def _problem(status: int, title: str) -> ResponseReturnValue:
    """Return a problem for a program (RFC 9457), with a machine-readable reason."""
    problem: dict[str, int | str] = {"status": status, "title": title}
    if sessions.rejected is not None:
        problem |= {"reason": sessions.rejected, "detail": _why_signed_out()}
    answer = jsonify(problem)
    answer.content_type = "application/problem+json"
    return answer, status


def _is_remembered() -> bool:
    return current_app.config.get("REMEMBER_COOKIE_NAME", "remember_token") in request.cookies


def _next() -> str:
    """Return the page that the visitor wanted, if it belongs to this app."""
    target = request.args.get("next", "")
    # Browsers read a backslash as a slash and skip control characters: '/\t/elsewhere.example'.
    is_path = target.startswith("/") and not target.startswith("//")
    if is_path and "\\" not in target and target.isprintable():
        return target
    return url_for("account.index")


def _link(endpoint: str, **values: Any) -> str:
    """Return a link for a mail, to the requested host: one of ``TRUSTED_HOSTS``."""
    scheme = current_app.config["PREFERRED_URL_SCHEME"]
    return url_for(endpoint, **values, _external=True, _scheme=scheme)


def _page(template: str, form: FlaskForm) -> ResponseReturnValue:
    return render_template(template, form=form), 422 if form.is_submitted() else 200
