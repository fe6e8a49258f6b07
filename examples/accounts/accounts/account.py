"""The account page and the password change. The registry's own page lists the sessions."""

from flask import Blueprint, flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, fresh_login_required, login_required

from .extensions import db, sessions
from .forms import ChangePasswordForm

blueprint = Blueprint("account", __name__)


@blueprint.get("/")
def home() -> ResponseReturnValue:
    return redirect(url_for("account.index"))


@blueprint.get("/account")
@login_required
def index() -> ResponseReturnValue:
    return render_template("account/index.html")


@blueprint.route("/account/password", methods=["GET", "POST"])
@fresh_login_required
@sessions.revoke_on_password_change
def change_password() -> ResponseReturnValue:
    form = ChangePasswordForm()
    if form.validate_on_submit():
        if current_user.check_password(form.current.data):
            current_user.set_password(form.password.data)
            db.session.commit()
            flash("Your password is changed. All other devices are signed out.")
            return redirect(url_for("account.index"))
        form.current.errors = ["That is not your password."]
    return render_template("account/password.html", form=form), 422 if form.is_submitted() else 200
