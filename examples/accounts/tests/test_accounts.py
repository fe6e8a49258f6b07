from __future__ import annotations

import re
import typing as t
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import itsdangerous
import pytest
from accounts import config
from accounts.cli import USERS
from accounts.extensions import db, sessions
from accounts.models import User
from flask import Flask
from sqlalchemy import inspect
from werkzeug.security import generate_password_hash
from werkzeug.test import TestResponse

if TYPE_CHECKING:
    from tests.conftest import Browser

(ANN, _, PASSWORD), (BOB, _, _) = USERS
NEW = "staple battery horse"


PAGE = "/account/sessions/"


def devices(browser: Browser) -> dict[str, str | None]:
    """Return the devices on the sessions page: by name, the path that ends each, or None."""
    items = re.findall(r"<li\b.*?</li>", browser.get(PAGE).text, re.DOTALL)
    found = [(re.search(r"<h2><bdi>(\w+)", item), item) for item in items]
    paths = {name[1]: re.search(r'action="([^"]+)"', item) for name, item in found if name}
    return {name: path and path[1] for name, path in paths.items()}


def token_on(page: TestResponse) -> str:
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page.text)
    assert token is not None
    return token[1]


def sign_up(browser: Browser, **fields: str) -> TestResponse:
    return browser.post(
        "/signup",
        {
            "name": "Cleo",
            "email": "cleo@example.com",
            "password": NEW,
            "repeated": NEW,
            **fields,
        },
    )


def forget(browser: Browser, email: str = ANN) -> TestResponse:
    return browser.post("/forgot", {"email": email}, on="/forgot")


def link_in(mail: str) -> str:
    link = re.search(r"http://localhost(/reset/\S+)", mail)
    assert link is not None
    return link[1]


# -- signing up --------------------------------------------------------------------------------


def test_sign_up_signs_in(firefox: Browser) -> None:
    """A new user is signed in and sees this device on the account page."""
    sign_up(firefox, email=" Cleo@Example.COM ")
    assert devices(firefox) == {"Firefox": None}
    assert firefox.user == "cleo@example.com"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"email": "ANN@example.com"}, "There is an account with this address already."),
        ({"email": "nobody"}, "That doesn&#39;t look like an email address."),
        ({"email": "a@b"}, "That doesn&#39;t look like an email address."),
        ({"email": "a@b.example\x00"}, "That doesn&#39;t look like an email address."),
        ({"email": "a" * 250 + "@b.example"}, "That address is too long."),
        ({"name": "Cl\x00eo"}, "That is no name."),
        ({"name": "C" * 101}, "A name has at most 100 characters."),
        ({"name": ""}, "Please enter your name."),
        ({"password": "1234567", "repeated": "1234567"}, "at least 8"),
        ({"password": "x" * 129, "repeated": "x" * 129}, "at most 128"),
        ({"repeated": "something else"}, "The two passwords are not the same."),
    ],
)
def test_sign_up_says_what_is_wrong(firefox: Browser, fields: dict[str, str], message: str) -> None:
    """Invalid input is explained beside its field, and no account is created."""
    page = sign_up(firefox, **fields)
    assert page.status_code == 422
    assert message in page.text
    assert firefox.user is None


@pytest.mark.parametrize(
    "password", ["12345678", "x" * 128, "   space   ", "pass\x00word", "pässwörd🙂"]
)
def test_any_long_enough_password_works(firefox: Browser, chrome: Browser, password: str) -> None:
    """Any password from 8 to 128 characters works, and is taken exactly as entered."""
    sign_up(firefox, password=password, repeated=password)
    chrome.sign_in("cleo@example.com", password[:-1])
    assert chrome.user is None
    chrome.sign_in("cleo@example.com", password)
    assert chrome.user == "cleo@example.com"


# -- signing in and out ------------------------------------------------------------------------


def test_sign_in(firefox: Browser, chrome: Browser) -> None:
    """The right password signs in this browser and no other."""
    firefox.sign_in(" Ann@Example.com ", PASSWORD)
    assert (firefox.user, chrome.user) == (ANN, None)


def test_wrong_password_and_unknown_address_get_the_same_answer(firefox: Browser) -> None:
    """A visitor can't find out which addresses have an account."""

    def answer(email: str, password: str) -> Any:
        page = firefox.sign_in(email, password)
        without_input = re.sub(r'value="[^"]*"', "", page.text)
        return page.status_code, without_input

    wrong_password = answer(ANN, "wrong password")
    assert answer("nobody@example.com", PASSWORD) == wrong_password
    assert answer("no address", PASSWORD) == wrong_password
    assert answer(ANN, "x" * 200) == wrong_password
    assert wrong_password[0] == 422
    assert firefox.user is None


def test_sign_in_leads_to_the_page_asked_for(firefox: Browser) -> None:
    """A visitor who requests a page anonymously lands on it after signing in."""
    asked = firefox.client.get("/account/password?from=mail")
    response = firefox.post(
        asked.location,
        {"email": ANN, "password": PASSWORD},
        on=asked.location,
        follow_redirects=False,
    )
    assert response.location == "/account/password?from=mail"


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\x00",
        "/\r\nSet-Cookie: a=b",
        "javascript:alert(1)",
        "account",
        "",
    ],
)
def test_sign_in_leads_to_no_other_site(firefox: Browser, target: str) -> None:
    """A sign-in link that leads to another site leads to the account instead."""
    response = firefox.client.post(
        "/signin",
        query_string={"next": target},
        data={
            "email": ANN,
            "password": PASSWORD,
            "csrf_token": token_on(firefox.get("/signin")),
        },
    )
    assert (response.status_code, response.location) == (302, "/account")


def test_signed_in_visitor_does_not_sign_in_again(firefox: Browser) -> None:
    """The sign-in page redirects a visitor who is already signed in."""
    firefox.sign_in()
    assert firefox.client.get("/signin?next=/account/password").location == "/account/password"


def test_outdated_hash_is_renewed_and_nobody_signed_out(
    app: Flask, firefox: Browser, chrome: Browser
) -> None:
    """A login replaces an outdated hash, and the user's other browsers stay signed in."""

    def set_outdated_hash() -> None:
        user = User.with_email(ANN)
        with sessions.same_credentials(user):
            user.password_hash = generate_password_hash(PASSWORD, "pbkdf2:sha256:1000")
            db.session.commit()

    chrome.sign_in()
    with app.app_context():
        set_outdated_hash()
    firefox.sign_in()
    with app.app_context():
        assert not User.with_email(ANN).is_password_hash_outdated
    assert (firefox.user, chrome.user) == (ANN, ANN)


def test_sign_out_ends_copies_too(firefox: Browser, open_browser: Callable[[str], Browser]) -> None:
    """After signing out, a copy of the earlier cookie is worthless."""
    firefox.sign_in(remember=True)
    copy = open_browser("Copy")
    copy.steal_cookies(firefox)
    assert copy.user == ANN
    page = firefox.post("/signout", on="/account")
    assert "You have signed out." in page.text
    assert (firefox.user, copy.user) == (None, None)


def test_signing_out_takes_a_post_with_a_token(firefox: Browser) -> None:
    """Another site can't sign anyone out, by a link or by a form."""
    firefox.sign_in()
    assert firefox.get("/signout").status_code == 405
    assert firefox.client.post("/signout").status_code == 400
    assert firefox.user == ANN


# -- remember me -------------------------------------------------------------------------------


def test_remembered_browser_comes_back(firefox: Browser, chrome: Browser) -> None:
    """With "remember me", a browser is still signed in after its window was closed."""
    firefox.sign_in(remember=True)
    chrome.sign_in()
    firefox.close()
    chrome.close()
    assert (firefox.user, chrome.user) == (ANN, None)


def test_remembered_browser_stays_one_device(firefox: Browser) -> None:
    """A remembered browser that comes back doesn't add a device to the list."""
    firefox.sign_in(remember=True)
    firefox.close()
    assert devices(firefox) == {"Firefox": None}


def test_remembered_browser_gives_the_password_before_changing_it(firefox: Browser) -> None:
    """A remembered browser must sign in again to change the password, and then lands there."""
    firefox.sign_in(remember=True)
    firefox.close()
    page = firefox.get("/account/password")
    assert "please enter your password again" in page.text
    assert f'value="{ANN}"' in page.text
    page = firefox.sign_in(remember=True, at=page.request.full_path)
    assert page.request.path == "/account/password"
    firefox.close()
    assert firefox.user == ANN


# -- changing the password ---------------------------------------------------------------------


def test_changed_password_signs_out_the_others_only(firefox: Browser, chrome: Browser) -> None:
    """After Chrome changes the password, Firefox's next request is anonymous."""
    firefox.sign_in()
    chrome.sign_in()
    page = chrome.change_password(PASSWORD, NEW)
    assert "Your password is changed." in page.text
    assert devices(chrome) == {"Chrome": None}
    assert (firefox.user, chrome.user) == (None, ANN)
    firefox.sign_in(password=PASSWORD)
    assert firefox.user is None
    firefox.sign_in(password=NEW)
    assert firefox.user == ANN


@pytest.mark.parametrize("path", ["/account", "/signin"])
def test_changed_password_ends_remembered_browsers(
    firefox: Browser, chrome: Browser, path: str
) -> None:
    """A "remember me" cookie from before a password change no longer signs in, and says why."""
    firefox.sign_in(remember=True)
    chrome.sign_in(remember=True)
    chrome.change_password(PASSWORD, NEW)
    firefox.close()
    chrome.close()
    page = firefox.get(path)
    assert page.request.path == "/signin"
    assert "because your password was changed on another device" in page.text
    assert (firefox.user, chrome.user) == (None, ANN)


def test_changed_password_ends_stolen_cookies(
    chrome: Browser, open_browser: Callable[[str], Browser]
) -> None:
    """A copy of this browser's earlier cookies is worthless and gets no new ones."""
    chrome.sign_in(remember=True)
    copy = open_browser("Copy")
    copy.steal_cookies(chrome)
    chrome.change_password(PASSWORD, NEW)
    # A late request of this very browser could look the same, and new cookies in its response would
    # replace those of the change.
    answer = copy.client.get("/account")
    assert answer.location == "/signin?next=/account"
    assert answer.headers.getlist("Set-Cookie") == []
    assert (chrome.user, copy.user) == (ANN, None)


def test_changed_password_says_why(firefox: Browser, chrome: Browser) -> None:
    """Firefox, which was not remembered, is told that the password was changed."""
    firefox.sign_in()
    chrome.sign_in()
    chrome.change_password(PASSWORD, NEW)
    assert firefox.whoami() == {"user": None, "reason": "password_changed"}
    page = firefox.get("/account")
    assert "because your password was changed on another device" in page.text
    assert "because your password was changed" not in firefox.get("/signin").text


def test_program_is_told_why(firefox: Browser, chrome: Browser) -> None:
    """A client that asks for JSON gets a 401 with a machine-readable reason."""
    asks = {"headers": {"Accept": "application/json"}}
    answer = firefox.client.get("/account", **asks)
    assert (answer.status_code, answer.json) == (401, {"status": 401, "title": "Please sign in."})
    firefox.sign_in()
    chrome.sign_in()
    chrome.change_password(PASSWORD, NEW)
    answer = firefox.client.get("/account", **asks)
    assert answer.status_code == 401
    assert answer.content_type == "application/problem+json"
    assert answer.json["reason"] == "password_changed"
    assert "your password was changed on another device" in answer.json["detail"]
    assert firefox.client.get("/account").status_code == 302


def test_mail_about_a_new_device(
    firefox: Browser, chrome: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """The owner is mailed about a device never seen before, and about no other."""
    firefox.sign_in()
    mail = capsys.readouterr().err
    assert f"Mail to {ANN}" in mail
    assert "from 127.0.0.1, with Firefox" in mail
    firefox.post("/signout", on="/account")
    firefox.sign_in()
    assert "Mail" not in capsys.readouterr().err
    chrome.sign_in()
    assert "with Chrome" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"current": "wrong password"}, "That is not your password."),
        ({"current": "x" * 200}, "That is not your password."),
        ({"current": ""}, "Please enter your password."),
        ({"password": "short", "repeated": "short"}, "at least 8"),
        ({"repeated": "something else"}, "The two passwords are not the same."),
    ],
)
def test_refused_change_signs_nobody_out(
    firefox: Browser, chrome: Browser, fields: dict[str, str], message: str
) -> None:
    """A rejected password change affects no device."""
    firefox.sign_in()
    chrome.sign_in()
    form = {"current": PASSWORD, "password": NEW, "repeated": NEW, **fields}
    page = chrome.post("/account/password", form, on="/account/password")
    assert page.status_code == 422
    assert message in page.text
    assert (firefox.user, chrome.user) == (ANN, ANN)


# -- a forgotten password ----------------------------------------------------------------------


def test_forgotten_password(
    firefox: Browser, chrome: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reset link sets a new password, ends every session and signs in nobody."""
    firefox.sign_in(remember=True)
    forget(chrome)
    link = link_in(capsys.readouterr().err)
    page = chrome.post(link, {"password": NEW, "repeated": NEW}, on=link)
    assert page.request.path == "/signin"
    assert "Your password is changed." in page.text
    assert (firefox.user, chrome.user) == (None, None)
    chrome.sign_in(password=PASSWORD)
    assert chrome.user is None
    chrome.sign_in(password=NEW)
    assert chrome.user == ANN


def test_reset_ends_the_session_it_is_done_in(
    firefox: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resetting the password while signed in ends that session too."""
    firefox.sign_in(remember=True)
    forget(firefox)
    link = link_in(capsys.readouterr().err)
    page = firefox.post(link, {"password": NEW, "repeated": NEW}, on=link)
    assert page.request.path == "/signin"
    assert "Your password is changed." in page.text
    assert firefox.user is None


def test_unknown_address_gets_the_same_answer_and_no_mail(
    firefox: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """A visitor can't find out from a password reset who has an account."""
    known = forget(firefox).text
    assert ANN in capsys.readouterr().err
    unknown = forget(firefox, "nobody@example.com").text
    assert capsys.readouterr().err == ""
    tokens = r'value="[^"]*"'
    assert re.sub(tokens, "", known) == re.sub(tokens, "", unknown)


def test_link_works_once(
    firefox: Browser, chrome: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reset link that was used, or is older than a password change, is refused."""
    forget(chrome)
    link = link_in(capsys.readouterr().err)
    chrome.post(link, {"password": NEW, "repeated": NEW}, on=link)
    assert "This link is too old, or has been used." in chrome.get(link).text
    firefox.post(link, {"password": "another password", "repeated": "another password"})
    firefox.sign_in(password="another password")
    assert firefox.user is None


def test_link_works_for_an_hour(
    firefox: Browser, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an hour, a reset link is refused."""
    forget(firefox)
    link = link_in(capsys.readouterr().err)

    def hours_later(hours: int) -> None:
        moment = datetime.now(timezone.utc) + timedelta(hours=hours)
        monkeypatch.setattr(
            itsdangerous.TimestampSigner, "get_timestamp", lambda _: int(moment.timestamp())
        )

    hours_later(0.99)
    assert firefox.get(link).request.path == link
    hours_later(1.01)
    assert firefox.get(link).request.path == "/forgot"


@pytest.mark.parametrize("token", ["x", "a.b.c", "é", "%00", "W10.aaaaaa.bbb", "x" * 5000])
def test_wrong_link_is_refused(firefox: Browser, token: str) -> None:
    """An invalid reset link leads to the page that sends a new one."""
    assert firefox.get(f"/reset/{token}").request.path == "/forgot"


@pytest.mark.skipif("TRUSTED_HOSTS" not in Flask.default_config, reason="it came with Flask 3.1")
def test_link_names_no_other_host(firefox: Browser) -> None:
    """A request with a forged host gets no reset link mailed: that host is not served."""
    assert firefox.get("/forgot", headers={"Host": "localhost:8000"}).status_code == 200
    assert firefox.get("/forgot", headers={"Host": "evil.example"}).status_code == 400


# -- where you're signed in --------------------------------------------------------------------


def test_page_lists_devices(firefox: Browser, chrome: Browser) -> None:
    """Each signed-in browser is listed under one heading, this one first and marked."""
    firefox.sign_in()
    chrome.sign_in()
    page = chrome.get("/account")
    page = chrome.get(re.search(r'href="(/account/sessions/)"', page.text)[1])
    assert list(devices(chrome)) == ["Chrome", "Firefox"]
    assert re.findall(r"<h2><bdi>(\w+)</bdi> <strong>This device", page.text) == ["Chrome"]
    assert page.text.count("<h1>") == 1


def test_ending_one_session(
    firefox: Browser, chrome: Browser, open_browser: Callable[[str], Browser]
) -> None:
    """The button beside a device signs out that device and confirms it."""
    edge = open_browser("Edge")
    for browser in (firefox, chrome, edge):
        browser.sign_in(remember=True)
    page = chrome.post(devices(chrome)["Firefox"], on=PAGE)
    assert "Firefox is signed out." in page.text
    assert set(devices(chrome)) == {"Chrome", "Edge"}
    assert (firefox.user, chrome.user, edge.user) == (None, ANN, ANN)


def test_ending_all_others(
    firefox: Browser, chrome: Browser, open_browser: Callable[[str], Browser]
) -> None:
    """One button signs out the user's other devices, and nobody else."""
    bobs = open_browser("Edge")
    bobs.sign_in(BOB)
    firefox.sign_in()
    chrome.sign_in()
    chrome.post(f"{PAGE}revoke-others", on=PAGE)
    assert devices(chrome) == {"Chrome": None}
    assert (firefox.user, chrome.user, bobs.user) == (None, ANN, BOB)


def test_ending_everything(firefox: Browser, chrome: Browser) -> None:
    """One button signs out all devices, including this one, and leads to the sign-in page."""
    firefox.sign_in()
    chrome.sign_in(remember=True)
    page = chrome.post(f"{PAGE}revoke-all", on=PAGE)
    assert page.request.path == "/signin"
    assert "You are signed out everywhere." in page.text
    assert (firefox.user, chrome.user) == (None, None)


def test_ending_takes_a_recent_password(app: Flask, firefox: Browser, chrome: Browser) -> None:
    """A session whose sign-in is too old must give the password before it can end others."""
    firefox.sign_in()
    chrome.sign_in()
    path = devices(chrome)["Firefox"]
    with app.app_context():
        rows: list[t.Any] = [*sessions.active(User.with_email(ANN))]
        for row in rows:
            row.authenticated_at -= timedelta(hours=1)
        db.session.commit()
    page = chrome.post(path, on=PAGE)
    assert page.request.path == "/signin"
    assert "please enter your password again" in page.text
    assert firefox.user == ANN
    page = chrome.sign_in(at=page.request.full_path)
    assert "Sign out Firefox?" in page.text
    chrome.post(page.request.path, on=page.request.path)
    assert (firefox.user, chrome.user) == (None, ANN)


# -- bad input ---------------------------------------------------------------------------------

FORMS = ["/signup", "/signin", "/forgot"]


@pytest.mark.parametrize("path", FORMS)
def test_form_without_token_is_refused(firefox: Browser, path: str) -> None:
    """A form without the page's token is refused."""
    page = firefox.client.post(path, data={"email": ANN, "password": PASSWORD})
    assert page.status_code == 400
    assert "load it again" in page.text


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("value", [None, "", "\x00", "\x00@\x00.\x00", "é" * 1000, "x" * 10_000])
def test_bad_input_is_refused(app: Flask, firefox: Browser, path: str, value: str) -> None:
    """Missing fields, NUL characters and excessive lengths are refused without a server error."""
    names = ("email", "name", "password", "repeated", "remember", "current")
    fields = {} if value is None else dict.fromkeys(names, value)
    app.testing = False
    assert firefox.post(path, fields, on=path).status_code == 422


@pytest.mark.parametrize(
    ("body", "type", "status"),
    [
        (b"x" * 100_000, "application/x-www-form-urlencoded", 413),
        (b"email=%ff%fe&password=%00", "application/x-www-form-urlencoded", 400),
        (b"{", "application/json", 400),
        (b"--x\r\n", "multipart/form-data", 400),
        (b"--x\r\nnonsense", "multipart/form-data; boundary=x", 400),
    ],
)
def test_body_that_is_not_a_form_is_refused(
    app: Flask, firefox: Browser, body: str, type: str, status: int
) -> None:
    """A body that is too long or not a form is a client error."""
    app.testing = False
    response = firefox.client.post("/signin", data=body, content_type=type)
    assert response.status_code == status


@pytest.mark.parametrize("value", ["x", "\\000", "é", '"', "a.b.c", "x" * 4000])
def test_invalid_cookies(app: Flask, firefox: Browser, value: str) -> None:
    """A browser with invalid cookies is an ordinary visitor."""
    app.testing = False
    firefox.client.set_cookie("session", value)
    firefox.client.set_cookie("remember_token", value)
    firefox.client.set_cookie("remember_token_session", value)
    assert firefox.user is None
    assert firefox.get("/account").request.path == "/signin"


# -- hardening ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/signin", "/account", PAGE, "/nowhere", "/reset/x"])
def test_every_page_protects_itself(firefox: Browser, path: str) -> None:
    """Responses forbid foreign scripts, frames, referrers and caching."""
    firefox.sign_in()
    headers = firefox.client.get(path).headers
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"


def test_pages_need_nothing_that_the_policy_forbids(firefox: Browser) -> None:
    """No page contains an inline script or style."""
    pages = [firefox.get(path).text for path in ("/signin", "/signup", "/forgot", "/nowhere")]
    firefox.sign_in()
    pages += [firefox.get(path).text for path in ("/account", "/account/password", PAGE)]
    for text in pages:
        assert not re.search(r"<script(?! src=)|<style|style=|\son\w+=", text)


@pytest.mark.parametrize("https", [False, True])
def test_cookies_are_for_the_server_only(
    app: Flask, firefox: Browser, monkeypatch: pytest.MonkeyPatch, https: bool
) -> None:
    """Scripts can't read the cookies and other sites don't send them; HTTPS ones stay on HTTPS."""
    monkeypatch.setenv("HTTPS", "1" if https else "")
    app.config.update(config.from_environ(Path(app.instance_path)))
    url = "https://localhost/signin" if https else "http://localhost/signin"
    response = firefox.client.post(
        url,
        headers={"Referer": url},
        data={
            "csrf_token": token_on(firefox.client.get(url)),
            "email": ANN,
            "password": PASSWORD,
            "remember": "y",
        },
    )
    cookies = {
        cookie.partition("=")[0]: cookie for cookie in response.headers.getlist("Set-Cookie")
    }
    remembering = {"remember_token", "remember_token_session"}
    assert set(cookies) == {"session", "session_device"} | remembering
    assert "Expires" not in cookies["session"]
    for cookie in cookies.values():
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert ("Secure" in cookie) == https


def test_processes_that_start_together_agree_on_the_secret(tmp_path: Path) -> None:
    """Processes that start together share one secret, which only its owner can read."""
    path = tmp_path / "secret_key"
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(config._kept_secret, [path] * 64))
    assert len(made) == 1
    assert len(made.pop()) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_migration_makes_what_the_models_say(app: Flask) -> None:
    """The migration's tables have the columns of the models."""
    with app.app_context():
        tables = inspect(db.engine)
        for model in (User, sessions.UserSession):
            made = {column["name"] for column in tables.get_columns(model.__tablename__)}
            assert made == {column.name for column in model.__table__.columns}


def test_seed_can_be_run_twice(app: Flask) -> None:
    """Running the seed twice creates its two users once, and it shows how to sign in."""
    runner = app.test_cli_runner()
    for _ in range(2):
        result = runner.invoke(args=["seed"])
        assert result.exit_code == 0
        assert "ann@example.com  correct horse battery" in result.output
    with app.app_context():
        assert db.session.query(User).count() == 2
