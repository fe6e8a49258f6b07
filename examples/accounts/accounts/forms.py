"""The forms and their limits."""

from flask_wtf import FlaskForm
from wtforms import BooleanField, EmailField, PasswordField, StringField
from wtforms.validators import EqualTo, InputRequired, Length, Regexp

# What browsers accept as an address, with a dot in its domain.
_EMAIL = r"[a-z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-z0-9-]+(\.[a-z0-9-]+)+\Z"
_TEXT = r"[^\x00-\x1f\x7f-\x9f]*\Z"

PASSWORD_LENGTH = Length(8, 128, "A password has at least 8 and at most 128 characters.")


def _email_field() -> EmailField:
    return EmailField(
        "Email address",
        filters=[lambda text: text.strip().lower() if text else text],
        validators=[
            InputRequired("Please enter your email address."),
            Length(max=254, message="That address is too long."),
            Regexp(_EMAIL, message="That doesn't look like an email address."),
        ],
        render_kw={"autocomplete": "username", "maxlength": 254},
    )


def _password_field(label: str) -> PasswordField:
    """Return a field for an existing password."""
    return PasswordField(
        label,
        validators=[
            InputRequired("Please enter your password."),
            Length(max=128, message="That is not your password."),
        ],
        render_kw={"autocomplete": "current-password", "maxlength": 128},
    )


class NewPasswordForm(FlaskForm):
    """A new password, exactly as entered. OWASP ASVS 5.0, 6.2: long, no composition rules."""

    password = PasswordField(
        "New password",
        validators=[InputRequired("Please choose a password."), PASSWORD_LENGTH],
        render_kw={"autocomplete": "new-password", "minlength": 8, "maxlength": 128},
    )
    repeated = PasswordField(
        "New password, again",
        validators=[EqualTo("password", "The two passwords are not the same.")],
        render_kw={"autocomplete": "new-password", "maxlength": 128, "required": True},
    )


class SignUpForm(NewPasswordForm):
    email = _email_field()
    name = StringField(
        "Your name",
        filters=[lambda text: text.strip() if text else text],
        validators=[
            InputRequired("Please enter your name."),
            Length(1, 100, "A name has at most 100 characters."),
            Regexp(_TEXT, message="That is no name."),
        ],
        render_kw={"autocomplete": "name"},
    )


class SignInForm(FlaskForm):
    email = _email_field()
    password = _password_field("Password")
    remember = BooleanField("Remember me on this device")


class ChangePasswordForm(NewPasswordForm):
    current = _password_field("Current password")


class ForgotPasswordForm(FlaskForm):
    email = _email_field()
