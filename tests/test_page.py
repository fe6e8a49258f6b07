"""The page on which users see where they are signed in, and sign out devices."""

from __future__ import annotations

import datetime as dt
import re
import threading
import typing as t
import uuid
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import sqlalchemy as sa
from conftest import SiteFactory
from flask import get_flashed_messages
from flask_login import UserMixin, confirm_login, login_fresh
from flask_wtf import CSRFProtect
from site_under_test import Browser, Site, days_ago

from flask_session_registry import _clock as clock
from flask_session_registry import session_revoked
from flask_session_registry._web import views

PREFIX = "/account/sessions"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like"
    " Gecko) Version/17.5 Mobile/15E148 Safari/604.1"
)
JSON = {"Accept": "application/json"}


def with_page(site: Site) -> Site:
    app = site.app
    app.register_blueprint(site.sessions.blueprint, url_prefix=PREFIX)
    site.login_manager.login_view = "sign_in"
    site.login_manager.refresh_view = "sign_in"

    @app.get("/sign-in")
    def sign_in() -> dict[str, t.Any]:
        return {"rejected": site.sessions.rejected, "said": get_flashed_messages()}

    @app.get("/fresh")
    def fresh() -> dict[str, bool]:
        return {"fresh": login_fresh()}

    @app.post("/confirm")
    def confirm() -> str:
        confirm_login()
        return "confirmed"

    return site


@pytest.fixture
def page(site: Site) -> Site:
    return with_page(site)


@pytest.fixture
def firefox(page: Site) -> Browser:
    browser = page.browser(FIREFOX)
    browser.login()
    return browser


@pytest.fixture
def phone(page: Site) -> Browser:
    browser = page.browser(IPHONE)
    browser.login()
    return browser


def see(browser: Browser, query: str = "") -> t.Any:
    answer = browser.get(f"{PREFIX}/{query}", headers=JSON)
    assert answer.status_code == 200, answer.text
    return answer.json


def token_of(browser: Browser) -> str:
    return t.cast(str, see(browser)["csrf_token"])


def end(browser: Browser, path: str, **headers: str) -> t.Any:
    """Post to a path of the page, as a script does."""
    found = {"X-CSRFToken": token_of(browser), **JSON, **headers}
    return browser.open("POST", f"{PREFIX}/{path}", headers=found)


def submit(browser: Browser, path: str) -> t.Any:
    """Submit a form of the page, as a browser does. Return the messages flashed afterwards."""
    answer = browser.post(f"{PREFIX}/{path}", csrf_token=token_of(browser))
    assert answer.status_code == 303, answer.text
    assert answer.location == f"{PREFIX}/"
    return browser.get("/sign-in").json["said"]


def id_of(browser: Browser) -> str:
    (found,) = (one["id"] for one in see(browser)["sessions"] if one["is_current"])
    return t.cast(str, found)


# -- seeing ----------------------------------------------------------------------------------------


def test_page_shows_all_devices(firefox: Browser, phone: Browser) -> None:
    """This device comes first. Each device has a name that people understand."""
    text = firefox.get(f"{PREFIX}/").text
    names = re.findall(r"<h2><bdi>(.*?)</bdi>(?: <strong>(.*?)</strong>)?</h2>", text)
    assert names == [("Firefox on Linux", "This device"), ("Safari on iPhone", "")]
    assert text.count("127.0.0.1") == 2
    assert text.count("<time ") == 4
    assert f'title="{IPHONE}"' in text
    # One for the other device, one for all others, one for all.
    assert text.count("<form ") == 3


def test_page_of_the_only_device(firefox: Browser) -> None:
    """The page offers only to sign out everywhere."""
    text = firefox.get(f"{PREFIX}/").text
    assert re.findall("<button>(.*?)</button>", text) == ["Sign out everywhere, including here"]
    assert "Recently signed out" not in text


@pytest.mark.parametrize("attribute", ["password_hash", None])
def test_no_sessions_of_other_users(make_site: SiteFactory, attribute: str | None) -> None:
    """Another user's sessions aren't shown, active or ended, whatever they have in common."""
    site = with_page(make_site(SESSION_REGISTRY_PASSWORD_ATTRIBUTE=attribute))
    ann, bob, gone = site.browser(FIREFOX), site.browser(IPHONE), site.browser(IPHONE)
    ann.login()
    bob.login("bob")
    gone.login("bob")
    gone.post("/logout")
    site.change(fingerprint=site.rows(user_agent=FIREFOX)[0].fingerprint)
    found = see(ann)
    assert [one["user_agent"] for one in found["sessions"]] == [FIREFOX]
    assert found["recently_ended"] == []


@pytest.mark.table
def test_rows_that_are_not_sessions(make_site: SiteFactory) -> None:
    """The stale keys that a rotation leaves aren't shown."""
    site = with_page(make_site())
    site.app.post("/rotate")(lambda: site.sessions.rotate() or "rotated")
    firefox = site.browser(FIREFOX)
    firefox.login()
    for _ in range(3):
        firefox.post("/rotate")
    assert len(site.stale_keys()) == 3
    assert see(firefox)["recently_ended"] == []


def test_ended_at_once(firefox: Browser, page: Site) -> None:
    """Sessions that one revocation ended have a stable order."""
    others = [page.browser(f"Other{number}") for number in range(4)]
    for browser in others:
        browser.login()
    end(firefox, "revoke-others")
    page.change(ended=True, revoked_at=days_ago(1))
    ids = [one["id"] for one in see(firefox)["recently_ended"]]
    assert ids == sorted(ids)
    assert len(ids) == 4


def test_confirmation_says_which_device(firefox: Browser, phone: Browser) -> None:
    """The confirmation page tells devices of the same name apart, and marks this one."""
    text = firefox.get(f"{PREFIX}/{id_of(phone)}/revoke").text
    assert "127.0.0.1" in text
    assert "This device" not in text
    assert "This device" in firefox.get(f"{PREFIX}/{id_of(firefox)}/revoke").text


def test_list_in_json(firefox: Browser, phone: Browser, page: Site) -> None:
    """The JSON has the same data as the page, and nothing else."""
    found = see(firefox)
    assert set(found) == {"sessions", "recently_ended", "next", "csrf_token"}
    this, other = found["sessions"]
    assert (this["is_current"], other["is_current"]) == (True, False)
    assert (other["name"], other["kind"], other["user_agent"]) == (
        "Safari on iPhone",
        "phone",
        IPHONE,
    )
    rows = {str(row.id): row for row in page.rows()}
    row = rows[other.pop("id")]
    assert other == {
        "is_current": False,
        "name": "Safari on iPhone",
        "kind": "phone",
        "user_agent": IPHONE,
        "ip_address": "127.0.0.1",
        "place": None,
        "created_at": clock.as_utc(row.created_at).isoformat(),
        "last_seen_at": clock.as_utc(row.last_seen_at).isoformat(),
        "remember_until": None,
        "ended_at": None,
        "reason": None,
    }


def test_recently_ended(firefox: Browser, phone: Browser) -> None:
    """The page shows which sessions ended recently, and why."""
    phone.post("/logout")
    (ended,) = see(firefox)["recently_ended"]
    assert (ended["name"], ended["reason"]) == ("Safari on iPhone", "logged_out")
    assert ended["ended_at"] is not None
    assert "Signed out on the device" in firefox.get(f"{PREFIX}/").text


def test_remembered_until(page: Site) -> None:
    """The page shows how long a device stays signed in without the password, while it does."""
    browser = page.browser(FIREFOX)
    browser.login(remember="1")
    assert see(browser)["sessions"][0]["remember_until"] is not None
    assert "Remembered until" in browser.get(f"{PREFIX}/").text
    page.change(remember_until=days_ago(1))
    assert see(browser)["sessions"][0]["remember_until"] is None
    assert "Remembered until" not in browser.get(f"{PREFIX}/").text


def test_inactive_sessions_are_not_shown(firefox: Browser, phone: Browser, page: Site) -> None:
    """A session that has expired, or has the fingerprint of an earlier password, isn't active."""
    page.change({"user_agent": IPHONE}, last_seen_at=days_ago(100))
    assert len(see(firefox)["sessions"]) == 1
    page.change({"user_agent": IPHONE}, last_seen_at=days_ago(0))
    assert len(see(firefox)["sessions"]) == 2
    page.change({"user_agent": IPHONE}, fingerprint="of an earlier one")
    assert len(see(firefox)["sessions"]) == 1


def test_no_secret_is_shown(firefox: Browser, phone: Browser, page: Site) -> None:
    """54: the page shows no session id, and no other secret of a row or a cookie."""
    phone.post("/logout")
    secrets = {value for one in (firefox, phone) for value in one.cookies.values()}
    for row in page.rows():
        secrets |= {row.store_id, row.fingerprint}
    secrets -= {None}
    assert len(secrets) > 3
    for answer in (firefox.get(f"{PREFIX}/"), firefox.get(f"{PREFIX}/", headers=JSON)):
        assert not [secret for secret in secrets if secret in answer.text]


def test_answers_are_kept_nowhere(firefox: Browser, page: Site) -> None:
    """No cache stores the page, its redirects or its errors, and no site can frame it."""
    nobody = page.browser()
    for answer in (
        firefox.get(f"{PREFIX}/"),
        firefox.get(f"{PREFIX}/revoke-all"),
        nobody.get(f"{PREFIX}/"),
        nobody.get(f"{PREFIX}/", headers=JSON),
        firefox.post(f"{PREFIX}/revoke-all"),
    ):
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Accept" in answer.headers["Vary"]
        assert answer.headers["X-Frame-Options"] == "DENY"
    with firefox.get(f"{PREFIX}/assets/sessions.css") as style:
        assert (style.status_code, style.headers["Cache-Control"]) == (200, "no-cache")


def test_nothing_inline(firefox: Browser, phone: Browser) -> None:
    """The page works under a strict Content-Security-Policy: no inline script, style or handler."""
    text = firefox.get(f"{PREFIX}/").text
    assert len(re.findall("<svg", text)) == 2
    assert not re.search(r"<style|style=|\son\w+=|javascript:", text)
    assert re.findall(r"<script(.*?)>(.*?)</script>", text, re.DOTALL) == [
        (f' src="{PREFIX}/assets/sessions.js" defer', "")
    ]


@pytest.mark.parametrize(
    "user_agent",
    [
        "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>/1.0",
        'Mozilla/5.0 (X11; Linux x86_64) <b>Firefox</b>/133.0 "><svg/onload=alert(1)>',
        "A" * 60_000,
        "\u202eEvil\u202c 🦊\u200f/1.0".encode().decode("latin-1"),
        "%s %(device)s {{ 7*7 }} {% raw %}",
        "",
    ],
)
def test_hostile_user_agent(firefox: Browser, page: Site, user_agent: str) -> None:
    """53: a user agent is shown as text, and shortened."""
    page.browser(user_agent).login()
    phone = page.browser(user_agent)
    phone.login()
    phone.post("/logout")
    answer = firefox.get(f"{PREFIX}/")
    assert answer.status_code == 200
    assert len(answer.text) < 10_000
    assert not re.search(r"<(b>|img|svg/|script>)", answer.text)
    shown = see(firefox)
    assert len(shown["sessions"]) == 2
    assert len(shown["sessions"][1]["name"]) <= 100
    assert shown["recently_ended"][0]["name"] == shown["sessions"][1]["name"]


def many(site: Site, number: int, *, ended: bool = False) -> None:
    """Add this number of sessions of Ann's, in pairs last seen one second apart."""
    first = site.rows()[0]
    now = dt.datetime.now(dt.timezone.utc)
    site.add_rows(
        [
            {
                "id": uuid.uuid4(),
                "user_id": first.user_id,
                "generation": 0,
                "user_agent": f"Device {n}",
                "created_at": now,
                # Pairs with the same timestamp.
                "last_seen_at": now - dt.timedelta(seconds=n // 2),
                "authenticated_at": now,
                "fingerprint": first.fingerprint,
                "revoked_at": now - dt.timedelta(seconds=n) if ended else None,
                "revoked_reason": "revoked" if ended else None,
            }
            for n in range(number)
        ]
    )


def test_page_by_page(database_site: Site) -> None:
    """Each session is on one page, this device on the first, and 'next' leads to the last one."""
    page = with_page(database_site)
    firefox = page.browser(FIREFOX)
    firefox.login()
    many(page, 2 * views.PAGE_SIZE + 5)
    seen, query, pages = [], "", 0
    while query is not None:
        found = see(firefox, query)
        seen += [one["user_agent"] for one in found["sessions"]]
        assert len(found["sessions"]) <= views.PAGE_SIZE + 1
        query = found["next"] and found["next"].removeprefix(f"{PREFIX}/")
        pages += 1
    assert pages == 3
    assert seen[0] == FIREFOX
    numbers = [int(one.removeprefix("Device ")) // 2 for one in seen[1:]]
    assert numbers == sorted(numbers)
    assert len(set(seen)) == len(seen) == 2 * views.PAGE_SIZE + 6
    first, second = firefox.get(f"{PREFIX}/").text, firefox.get(see(firefox)["next"]).text
    assert ("More devices" in first, "Back to the first page" in first) == (True, False)
    assert ("More devices" in second, "Back to the first page" in second) == (True, True)
    assert "This device" not in second
    assert "Sign out all other devices" in second
    assert 'rel="next">More devices' in second


@pytest.mark.once
def test_page_of_10_000_sessions(firefox: Browser, page: Site) -> None:
    """The page runs as many statements, and shows as many rows, as with few sessions."""
    firefox.get(f"{PREFIX}/")
    with page.count_statements() as statements:
        firefox.get(f"{PREFIX}/")
    few = len(statements)
    for _ in range(5):
        many(page, 1000)
        many(page, 1000, ended=True)
    with page.count_statements() as statements:
        text = firefox.get(f"{PREFIX}/").text
    assert len(statements) == few
    assert len(re.findall(r"<li\b", text)) == views.PAGE_SIZE + 1 + views.RECENTLY_ENDED
    # Five batches of a thousand: the latest of each ended at about the same time.
    ended = {one["user_agent"] for one in see(firefox)["recently_ended"]}
    assert ended <= {f"Device {n}" for n in range(views.RECENTLY_ENDED)}


@pytest.mark.parametrize("after", ["", "1", "1-1", "-1-" + "a" * 32, "9" * 18 + "-" + "a" * 32])
def test_invalid_page(firefox: Browser, after: str) -> None:
    """An invalid 'after' is refused."""
    answer = firefox.get(f"{PREFIX}/?after={after}", headers=JSON)
    assert answer.status_code == 400
    assert answer.json["detail"] == "'after' is invalid. Use the address in 'next'."
    assert firefox.get(f"{PREFIX}/?after={after}").status_code == 400


def test_last_page_of_all(firefox: Browser) -> None:
    """The highest timestamp that 'after' can express is valid."""
    assert see(firefox, "?after=" + "9" * 17 + "-" + "f" * 32)["next"] is None


# -- signing out -----------------------------------------------------------------------------------


def test_end_one(firefox: Browser, phone: Browser, page: Site) -> None:
    """That device is signed out, this one and the user's others aren't, and a message says so."""
    third = page.browser("Third")
    third.login()
    assert submit(firefox, f"{id_of(phone)}/revoke") == ["Safari on iPhone is signed out."]
    assert not phone.is_signed_in
    assert phone.rejected == "revoked"
    assert firefox.is_signed_in
    assert third.is_signed_in


def test_end_the_others(firefox: Browser, phone: Browser, page: Site) -> None:
    """All of the user's devices but this one are signed out, and no other user's."""
    third, bob = page.browser("Third"), page.browser("Bob's")
    third.login()
    bob.login("bob")
    assert submit(firefox, "revoke-others") == ["2 other devices are signed out."]
    assert [one.is_signed_in for one in (firefox, phone, third, bob)] == [True, False, False, True]
    phone.login()
    assert submit(firefox, "revoke-others") == ["1 other device is signed out."]


def test_end_everything(firefox: Browser, phone: Browser, page: Site) -> None:
    """This device is signed out too, along with its "remember me" cookie."""
    phone.login(remember="1")
    bob = page.browser("Bob's")
    bob.login("bob")
    copy = phone.copy()
    assert submit(phone, "revoke-all") == ["You are signed out everywhere."]
    assert "remember_token" not in phone.cookies
    assert [one.is_signed_in for one in (firefox, phone, copy, bob)] == [False, False, False, True]


def test_end_this_one(firefox: Browser, phone: Browser) -> None:
    """This device can be signed out here as well."""
    assert end(firefox, f"{id_of(firefox)}/revoke").json == {"ended": 1}
    assert not firefox.is_signed_in
    assert phone.is_signed_in


def test_ending_in_json(firefox: Browser, phone: Browser, page: Site) -> None:
    """The response has the number of sessions that ended."""
    page.browser("Third").login()
    assert end(firefox, f"{id_of(phone)}/revoke").json == {"ended": 1}
    assert end(firefox, "revoke-others").json == {"ended": 1}
    assert end(firefox, "revoke-others").json == {"ended": 0}
    assert end(firefox, "revoke-all").json == {"ended": 1}
    assert not firefox.is_signed_in


@pytest.mark.parametrize("kind", ["unknown", "of somebody else", "ended", "no id", "bytes"])
def test_unknown_session(firefox: Browser, phone: Browser, page: Site, kind: str) -> None:
    """55: another user's id gets the same response as an unknown id, and no session ends."""
    bob = page.browser("Bob's")
    bob.login("bob")
    ended = id_of(phone)
    phone.post("/logout")
    id = {
        "unknown": str(uuid.uuid4()),
        "of somebody else": id_of(bob),
        "ended": ended,
        "no id": "me",
        "bytes": "%00%ff",
    }[kind]
    answer = end(firefox, f"{id}/revoke")
    assert (answer.status_code, answer.content_type) == (404, "application/problem+json")
    assert answer.json == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "You have no active session with this id.",
    }
    assert submit(firefox, f"{id}/revoke") == ["That device is not signed in."]
    assert firefox.get(f"{PREFIX}/{id}/revoke").status_code == 303
    assert (firefox.is_signed_in, bob.is_signed_in) == (True, True)


@pytest.mark.parametrize("what", ["revoke", "revoke-others"])
def test_ended_by_two_at_once(make_site: SiteFactory, database: str, what: str) -> None:
    """12: of two requests that end the same at once, one reports it, and each end counts once."""
    site = with_page(make_site("files", database))
    told: list[uuid.UUID] = []
    one, other, victim = browsers = [site.browser(FIREFOX) for _ in range(3)]
    for browser in browsers:
        browser.login()
    ids = [row.id for row in site.rows()]
    path = f"{ids[2]}/revoke" if what == "revoke" else what
    tokens = {browser: token_of(browser) for browser in browsers}
    is_first, may_go_on = threading.Event(), threading.Event()

    def receiver(app: t.Any, *, ids: t.Any, **_: t.Any) -> None:
        told.extend(ids)

    def before_commit(_: object) -> None:
        if not is_first.is_set():
            is_first.set()
            assert may_go_on.wait(30)

    def visit(browser: Browser) -> t.Any:
        headers = {**JSON, "X-CSRFToken": tokens[browser]}
        return browser.open("POST", f"{PREFIX}/{path}", headers=headers)

    with ThreadPoolExecutor(2) as pool, session_revoked.connected_to(receiver, site.app):
        sa.event.listen(site.db.session, "before_commit", before_commit)
        first = pool.submit(visit, one)
        assert is_first.wait(30)
        second = pool.submit(visit, other)
        # With a table, it waits for a lock and needs time to reach it.
        wait([second], timeout=0.5 if site.records == "sql" else 30)
        may_go_on.set()
        answers = [first.result(30), second.result(30)]
    sa.event.remove(site.db.session, "before_commit", before_commit)
    assert len(told) == len(set(told))
    if what == "revoke":
        assert sorted(answer.status_code for answer in answers) == [200, 404]
        assert told == [ids[2]]
    assert sum(answer.json.get("ended", 0) for answer in answers) == len(told)
    assert not victim.is_signed_in


def test_confirmation(firefox: Browser, phone: Browser) -> None:
    """A link asks for confirmation before it does anything. Its form does it."""
    for path, question in {
        f"{id_of(phone)}/revoke": "Sign out Safari on iPhone?",
        "revoke-others": "Sign out all other devices?",
        "revoke-all": "Sign out everywhere, including this device?",
    }.items():
        answer = firefox.get(f"{PREFIX}/{path}")
        assert answer.status_code == 200
        assert question in answer.text
        assert phone.is_signed_in
        token = re.search(r'name="csrf_token" value="(.+?)"', answer.text)
        assert token is not None
        assert firefox.post(f"{PREFIX}/{path}", csrf_token=token[1]).status_code == 303
        assert not phone.is_signed_in
        phone.login()


def test_signal_after_the_commit(firefox: Browser, phone: Browser, page: Site) -> None:
    """Entries are purged and the signal is sent, as for every revocation."""
    told: list[t.Any] = []

    def note(_: t.Any, *, ids: tuple[uuid.UUID, ...], reason: str, **__: t.Any) -> None:
        told.append(([str(id) for id in ids], reason))

    id = id_of(phone)
    with session_revoked.connected_to(note, page.app):
        submit(firefox, f"{id}/revoke")
    assert told == [([id], "revoked")]
    assert len(page.signed_in_entries()) == 1


# -- access ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "revoke-others", "revoke-all", f"{uuid.UUID(int=1)}/revoke"])
def test_anonymous_visitor(page: Site, path: str) -> None:
    """A visitor is redirected to the login page. A script gets a 401."""
    nobody = page.browser()
    answer = nobody.get(f"{PREFIX}/{path}")
    assert answer.status_code == 302
    assert answer.location.startswith("/sign-in?next=")
    answer = nobody.get(f"{PREFIX}/{path}", headers=JSON)
    assert (answer.status_code, answer.content_type) == (401, "application/problem+json")
    assert answer.json == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "reason": None,
    }


def test_reason_in_json(firefox: Browser, phone: Browser) -> None:
    """A script on a device that was signed out gets the reason."""
    firefox.post("/password", password="new")
    assert phone.get(f"{PREFIX}/", headers=JSON).json["reason"] == "password_changed"


@pytest.mark.parametrize("path", ["revoke-others", "revoke-all", "one"])
@pytest.mark.parametrize("token", ["", "none", "forged", "of somebody else"])
def test_forged_request(
    firefox: Browser, phone: Browser, page: Site, path: str, token: str
) -> None:
    """Without this session's token no session ends, and the login doesn't become stale either."""
    bob = page.browser("Bob's")
    bob.login("bob")
    if path == "one":
        path = f"{id_of(phone)}/revoke"
    given = {"": "", "forged": "x.y.z", "of somebody else": token_of(bob)}.get(token)
    headers = JSON if given is None else JSON | {"X-CSRFToken": given}
    answer = firefox.open("POST", f"{PREFIX}/{path}", headers=headers)
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")
    assert "CSRF" in answer.json["detail"]
    form = {} if given is None else {"csrf_token": given}
    answer = firefox.post(f"{PREFIX}/{path}", **form)
    assert answer.status_code == 303
    said = firefox.get("/sign-in").json["said"]
    assert said == ["That page was open for too long. Please try again."]
    assert (firefox.is_signed_in, phone.is_signed_in) == (True, True)
    assert end(firefox, "revoke-others").status_code == 200


def test_app_with_a_protection_of_its_own(make_site: SiteFactory) -> None:
    """With Flask-WTF's protection of all forms, scripts get problem details. One token suffices."""
    site = make_site()
    CSRFProtect(site.app).exempt(site.app.view_functions["login"])
    with_page(site)
    browser = site.browser(FIREFOX)
    browser.login()
    answer = browser.open("POST", f"{PREFIX}/revoke-all", headers=JSON)
    assert (answer.status_code, answer.content_type) == (400, "application/problem+json")
    assert browser.post(f"{PREFIX}/revoke-all").status_code == 303
    assert end(browser, "revoke-others").json == {"ended": 0}
    assert submit(browser, "revoke-all")[-1] == "You are signed out everywhere."


def test_names_of_the_app(make_site: SiteFactory) -> None:
    """The token's field and header have the names that the app has configured."""
    site = with_page(make_site(WTF_CSRF_FIELD_NAME="secret", WTF_CSRF_HEADERS=["X-Secret"]))
    browser = site.browser(FIREFOX)
    browser.login()
    text = browser.get(f"{PREFIX}/").text
    found = re.search(r'name="secret" value="(.+?)"', text)
    assert found is not None
    path = f"{PREFIX}/revoke-others"
    for headers, status in (({"X-Secret": found[1]}, 200), ({"X-CSRFToken": found[1]}, 400)):
        assert browser.open("POST", path, headers=JSON | headers).status_code == status
    assert browser.post(path, secret=found[1]).status_code == 303


def test_forms_without_protection(firefox: Browser, page: Site) -> None:
    """An app that disables Flask-WTF's protection, such as in its tests, needs no token here."""
    page.app.config["WTF_CSRF_ENABLED"] = False
    assert firefox.post(f"{PREFIX}/revoke-others").status_code == 303


@pytest.mark.parametrize("path", ["revoke-others", "revoke-all", "one"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_only_a_post_ends_anything(
    firefox: Browser, phone: Browser, path: str, method: str
) -> None:
    """Another site can make a browser send the other methods, without a token."""
    if path == "one":
        path = f"{id_of(phone)}/revoke"
    before = see(firefox)["sessions"]
    for headers in ({"Origin": "https://evil.example"}, {"X-HTTP-Method-Override": "POST"}, JSON):
        firefox.open(method, f"{PREFIX}/{path}", headers=headers)
    assert (firefox.is_signed_in, phone.is_signed_in) == (True, True)
    assert see(firefox)["sessions"] == before


@pytest.mark.parametrize("path", ["revoke-others", "revoke-all", "one"])
def test_question_is_for_people(firefox: Browser, phone: Browser, path: str) -> None:
    """A script that asks for the confirmation page gets a 405 that allows POST."""
    if path == "one":
        path = f"{id_of(phone)}/revoke"
    answer = firefox.get(f"{PREFIX}/{path}", headers=JSON)
    assert (answer.status_code, answer.content_type) == (405, "application/problem+json")
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("accept", "type"),
    [
        ("", "text/html; charset=utf-8"),
        ("*/*", "text/html; charset=utf-8"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8"),
        ("text/html, application/json", "text/html; charset=utf-8"),
        ("application/json;charset=utf-8", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json, */*;q=0.1", "application/json"),
        ("application/problem+json, application/json", "application/json"),
        ("text/html;q=0.5, application/json;q=0.6", "application/json"),
        ("nonsense;;q=x", "text/html; charset=utf-8"),
    ],
)
def test_html_or_json(firefox: Browser, accept: str, type: str) -> None:
    """Clients that prefer JSON get JSON."""
    answer = firefox.get(f"{PREFIX}/", headers={"Accept": accept})
    assert (answer.status_code, answer.content_type) == (200, type)


@pytest.mark.parametrize("path", ["revoke-others", "revoke-all", "one"])
@pytest.mark.parametrize("age", [15 * 60 - 1, 15 * 60])
def test_password_is_asked_for(
    firefox: Browser,
    phone: Browser,
    page: Site,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    age: int,
) -> None:
    """ASVS 7.5.2: a session whose password was entered too long ago can't end any session."""
    if path == "one":
        path = f"{id_of(phone)}/revoke"
    now = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
    monkeypatch.setattr(clock, "now", lambda: now)
    page.change({"user_agent": FIREFOX}, authenticated_at=now - dt.timedelta(seconds=age))
    if age < 15 * 60:
        assert firefox.get(f"{PREFIX}/{path}").status_code == 200
        assert end(firefox, path).status_code == 200
        return
    answer = end(firefox, path)
    assert (answer.status_code, answer.json["reason"]) == (401, "reauthentication_required")
    answer = firefox.post(f"{PREFIX}/{path}", csrf_token=token_of(firefox))
    assert answer.status_code == 302
    assert answer.location.startswith("/sign-in?next=")
    # The browser returns here after the password has been entered.
    assert firefox.get(f"{PREFIX}/{path}").status_code == 200
    assert (firefox.is_signed_in, phone.is_signed_in) == (True, True)
    assert firefox.get(f"{PREFIX}/").status_code == 200
    firefox.post("/confirm")
    assert end(firefox, path).status_code == 200
    assert not phone.is_signed_in


def test_stale_login_is_not_fresh(firefox: Browser, page: Site) -> None:
    """The login becomes stale, or the view that asks for the password would redirect in a loop."""
    assert firefox.get("/fresh").json == {"fresh": True}
    page.change(authenticated_at=days_ago(1))
    firefox.get(f"{PREFIX}/revoke-all")
    assert firefox.get("/fresh").json == {"fresh": True}
    firefox.post(f"{PREFIX}/revoke-all", csrf_token=token_of(firefox))
    assert firefox.get("/fresh").json == {"fresh": False}
    assert firefox.is_signed_in


def test_remembered_session_is_asked_for_the_password(page: Site) -> None:
    """A login by "remember me" cookie isn't fresh, however recently the password was entered."""
    browser = page.browser(FIREFOX)
    browser.login(remember="1")
    browser.lose("session")
    assert see(browser)["sessions"][0]["is_current"]
    assert end(browser, "revoke-others").json["reason"] == "reauthentication_required"


def test_age_of_the_password_does_not_matter(make_site: SiteFactory) -> None:
    """With ``REAUTH_AGE = None``, a login that Flask-Login calls fresh suffices and is required."""
    site = with_page(make_site(SESSION_REGISTRY_REAUTH_AGE=None))
    browser = site.browser(FIREFOX)
    browser.login(remember="1")
    site.change(authenticated_at=days_ago(20))
    assert end(browser, "revoke-others").status_code == 200
    browser.lose("session")
    assert end(browser, "revoke-others").status_code == 401


def test_user_without_a_session(page: Site) -> None:
    """A user who sends a token has no session, and can't see or end existing ones."""
    page.login_manager.request_loader(lambda request: page.user("ann"))
    browser = page.browser()
    assert browser.get(f"{PREFIX}/").location.startswith("/sign-in?next=")
    answer = browser.open("POST", f"{PREFIX}/revoke-all", headers=JSON)
    assert (answer.status_code, answer.json["reason"]) == (401, None)


def test_ended_since_the_check(
    firefox: Browser, phone: Browser, page: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that ends between the check and the view can't end another one."""
    token = token_of(firefox)
    with page.context():
        records = page.registry.records
    get = records.get

    def ended(id: uuid.UUID) -> t.Any:
        row = get(id)
        row.revoked_at = days_ago(0)
        return row

    monkeypatch.setattr(records, "get", ended)
    answer = firefox.post(f"{PREFIX}/revoke-others", csrf_token=token)
    assert answer.location.startswith("/sign-in?next=")
    monkeypatch.undo()
    assert phone.is_signed_in


def test_user_loader_of_another_kind(make_site: SiteFactory) -> None:
    """The app's user loader needn't return the mapped user."""
    site = make_site()

    class Wrapped(UserMixin):
        def __init__(self, user: t.Any) -> None:
            self.user = user

        def get_id(self) -> str:
            return str(self.user.id)

    site.login_manager.user_loader(lambda key: Wrapped(site.load_user(key)))
    with_page(site)
    one, other = site.browser(FIREFOX), site.browser(IPHONE)
    one.login()
    other.login()
    with site.context():
        id = site.rows(user_agent=IPHONE)[0].id
    assert end(one, f"{id}/revoke").json == {"ended": 1}
    assert end(one, "revoke-others").json == {"ended": 0}
    assert end(one, "revoke-all").json == {"ended": 1}


# -- when something is down ------------------------------------------------------------------------


def test_sessions_cannot_be_read(
    firefox: Browser,
    phone: Browser,
    page: Site,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The response is 503, in JSON too. The failure is logged, and the browser stays signed in."""

    def fail(*_: t.Any, **__: t.Any) -> t.Any:
        raise sa.exc.OperationalError("SELECT", {}, Exception("down"))

    with page.context():
        records = page.registry.records
    for name in ("list_others", "load"):
        with monkeypatch.context() as context:
            context.setattr(records, name, fail)
            answer = firefox.get(f"{PREFIX}/", headers=JSON)
            assert (answer.status_code, answer.content_type) == (503, "application/problem+json")
            assert answer.headers["Retry-After"] == "3"
            assert firefox.get(f"{PREFIX}/").status_code == 503
    assert "Could not answer a request for the page of a user's sessions." in caplog.text
    assert firefox.is_signed_in
