"""The page's layout, texts and languages, and its names for devices and places."""

from __future__ import annotations

import datetime as dt
import re
import sys
import typing as t
from pathlib import Path

import flask_babel
import pytest
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po
from conftest import SiteFactory
from hypothesis import given
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from netaddr import IPSet
from site_under_test import Browser, Site
from test_page import FIREFOX, IPHONE, PREFIX, end, id_of, see, submit, with_page
from test_readme import blocks

from flask_session_registry import ConfigurationError, _web
from flask_session_registry import _clock as clock
from flask_session_registry._web import i18n as texts
from flask_session_registry._web.user_agents import device_of

MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)"
WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
ANDROID = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0"


def page_of(browser: Browser) -> str:
    answer = browser.get(f"{PREFIX}/")
    assert answer.status_code == 200
    return t.cast(str, answer.text)


def with_templates(site: Site, **files: str) -> Site:
    """Give the app a folder of templates, and the page."""
    folder = site.folder / "templates"
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    site.app.template_folder = str(folder)
    return with_page(site)


def signed_in(site: Site, user_agent: str = FIREFOX) -> Browser:
    browser = site.browser(user_agent)
    browser.login()
    return browser


# -- layout ----------------------------------------------------------------------------------------


def test_layout_of_the_app(make_site: SiteFactory) -> None:
    """The page extends the app's own base template, as the README shows."""
    bridge, own = blocks("jinja")
    site = with_templates(
        make_site(SESSION_REGISTRY_BASE_TEMPLATE="bridge.html"),
        layout="<html lang={{ language }}><title>{% block title %}{% endblock %} - App</title>"
        "<nav>{{ active }}{{ form }}</nav><main>{% block main %}{% endblock %}</main>",
        bridge=bridge,
        session_registry__sessions=own,
    )
    # Variables that the app's template might use are left to it.
    site.app.context_processor(lambda: dict.fromkeys(("language", "active", "form"), "home"))
    firefox = signed_in(site)
    text = page_of(firefox)
    assert "<title>Where you&#39;re signed in - App</title><nav>homehome</nav><main>" in text
    assert "Ask us if one of these is not yours." in text
    assert "Sign out any" not in text
    assert "<h2><bdi>Firefox on Linux</bdi>" in text
    text = firefox.get(f"{PREFIX}/revoke-all").text
    assert "- App</title><nav>homehome</nav><main>" in text
    assert "Sign out everywhere, including this device?" in text


def test_layout_without_a_base_template(make_site: SiteFactory) -> None:
    """Without a base template, the page is a document of its own and shows flashed messages."""
    site = with_page(make_site())
    firefox, phone = signed_in(site), signed_in(site, IPHONE)
    token = see(firefox)["csrf_token"]
    firefox.post(f"{PREFIX}/{id_of(phone)}/revoke", csrf_token=token)
    text = page_of(firefox)
    assert '<html lang="en" class="user-sessions-alone">' in text
    assert re.findall(r'role="status">(.*?)<', text) == ["Safari on iPhone is signed out."]
    assert text.count("<h1>") == 1


# -- words and languages ---------------------------------------------------------------------------


def test_words_of_the_app(make_site: SiteFactory) -> None:
    """Each text can be replaced, one with a plural by a pair, also with a lazy translation."""
    site = make_site(
        SESSION_REGISTRY_TEXTS={
            "title": "Devices",
            "end": flask_babel.lazy_gettext("Log off"),
            "ended_others": ("One is gone.", "%(num)d are gone."),
        }
    )
    flask_babel.Babel(site.app)
    with_page(site)
    firefox = signed_in(site)
    signed_in(site, IPHONE)
    text = page_of(firefox)
    assert "<h1>Devices</h1>" in text
    assert ">Log off</button>" in text
    assert submit(firefox, "revoke-others") == ["One is gone."]
    signed_in(site)
    signed_in(site)
    assert submit(firefox, "revoke-others") == ["2 are gone."]


@pytest.mark.parametrize(
    "words",
    [
        {"titel": "Devices"},
        {"title": ("Device", "Devices")},
        {"ended_others": "gone"},
        {"ended_others": ("a", "b", "c")},
        {"ended_others": ("one", "%(count)d")},
        {"ended": "%(name)s"},
        {"ended": "100% of %(device)s"},
        {"title": None},
        {"introduction": 5},
        {"end": b"bytes"},
        "Devices",
        None,
    ],
)
def test_invalid_texts(make_site: SiteFactory, words: t.Any) -> None:
    """They stop the app, and the error lists the valid names."""
    with pytest.raises(ConfigurationError, match=r"'SESSION_REGISTRY_TEXTS' is .*title, intro"):
        make_site(SESSION_REGISTRY_TEXTS=words)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("BASE_TEMPLATE", ""),
        ("BASE_TEMPLATE", None),
        ("GEOIP_DATABASE", 5),
        ("REAUTH_AGE", 0),
    ],
)
def test_wrong_settings(make_site: SiteFactory, setting: str, value: t.Any) -> None:
    """58: an invalid value stops the app."""
    with pytest.raises(ConfigurationError, match=f"SESSION_REGISTRY_{setting}"):
        make_site(**{f"SESSION_REGISTRY_{setting}": value})


def test_translation_that_does_not_fit(make_site: SiteFactory, caplog: t.Any) -> None:
    """A lazy translation with different placeholders is replaced by the default text."""
    late = flask_babel.lazy_gettext("%(brower)s")
    site = make_site(SESSION_REGISTRY_TEXTS={"device": late, "confirm_others": "100% of them?"})
    flask_babel.Babel(site.app)
    with_page(site)
    firefox = signed_in(site)
    assert see(firefox)["sessions"][0]["name"] == "Firefox on Linux"
    assert "The text 'device' of the page" in caplog.text
    assert "100% of them?" in firefox.get(f"{PREFIX}/revoke-others").text


def test_language_of_the_reader(make_site: SiteFactory) -> None:
    """With Flask-Babel the page is in German, and times are in the reader's time zone."""
    site = make_site()
    flask_babel.Babel(
        site.app, locale_selector=lambda: "de", timezone_selector=lambda: "Europe/Berlin"
    )
    with_page(site)
    firefox, phone = signed_in(site), signed_in(site, IPHONE)
    seen = dt.datetime.now(dt.timezone.utc) - dt.timedelta(minutes=2)
    began = dt.datetime(2020, 7, 1, 12, 0, 0, tzinfo=dt.timezone.utc)
    site.change({"user_agent": IPHONE}, created_at=began, last_seen_at=seen)
    text = page_of(firefox)
    assert '<html lang="de"' in text
    assert "<h1>Wo du angemeldet bist</h1>" in text
    assert "<bdi>Safari auf iPhone</bdi>" in text
    assert "vor 2 Minuten" in text
    assert 'title="1. Juli 2020, 14:00:00 MESZ">01.07.2020</time>' in text.replace(" um ", ", ")
    assert submit(firefox, "revoke-others") == ["1 anderes Gerät ist abgemeldet."]
    assert "Von anderswo abgemeldet" in page_of(firefox)
    assert end(firefox, f"{id_of(firefox)}/revoke").json == {"ended": 1}
    assert not phone.is_signed_in


def test_language_of_a_country(make_site: SiteFactory) -> None:
    """The language tag follows BCP 47, so that browsers recognize it."""
    site = make_site()
    flask_babel.Babel(site.app, locale_selector=lambda: "de_AT")
    with_page(site)
    assert '<html lang="de-AT"' in page_of(signed_in(site))


def test_unknown_language(make_site: SiteFactory) -> None:
    """The page is in English."""
    site = make_site()
    flask_babel.Babel(site.app, locale_selector=lambda: "fi")
    with_page(site)
    assert "signed in</h1>" in page_of(signed_in(site))


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        ({"minutes": 1, "seconds": 59}, "il y a 1 minute"),
        ({"minutes": 59, "seconds": 59}, "il y a 59 minutes"),
        ({"hours": 23, "minutes": 59}, "il y a 23 heures"),
        ({"days": 20}, "il y a 20 jours"),
    ],
)
def test_relative_times_of_flask_babel(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, age: dict[str, int], shown: str
) -> None:
    """Relative times are in the reader's language even where no catalog of ours is."""
    site = make_site()
    flask_babel.Babel(site.app, locale_selector=lambda: "fr")
    with_page(site)
    firefox = signed_in(site)
    signed_in(site, IPHONE)
    moment = dt.datetime.now(dt.timezone.utc)
    site.change({"user_agent": IPHONE}, last_seen_at=moment - dt.timedelta(**age))
    # However long the page takes.
    monkeypatch.setattr("flask_session_registry._clock.now", lambda: moment)
    assert f">{shown}</time>" in page_of(firefox).replace("\xa0", " ")


def test_relative_times_of_the_app(make_site: SiteFactory) -> None:
    """A text of the app goes before Flask-Babel's."""
    site = make_site(SESSION_REGISTRY_TEXTS={"hours_ago": ("1 h", "%(num)d h")})
    flask_babel.Babel(site.app, locale_selector=lambda: "fr")
    with_page(site)
    firefox = signed_in(site)
    seen = dt.datetime.now(dt.timezone.utc) - dt.timedelta(hours=3)
    signed_in(site, IPHONE)
    site.change({"user_agent": IPHONE}, last_seen_at=seen)
    assert ">3 h</time>" in page_of(firefox)


def texts_in(catalog: t.Any) -> dict[t.Any, t.Any]:
    def plain(text: t.Any) -> t.Any:
        return text if isinstance(text, str) else tuple(text)

    return {plain(one.id): plain(one.string) for one in catalog if one.id}


def test_every_text_is_translated() -> None:
    """The included catalog is complete and compiled, with the same placeholders."""
    folder = texts._TRANSLATIONS / "de" / "LC_MESSAGES"
    with (folder / f"{texts._DOMAIN}.po").open("rb") as file:
        written = texts_in(read_po(file, locale="de"))
    with (folder / f"{texts._DOMAIN}.mo").open("rb") as file:
        compiled = texts_in(read_mo(file))
    assert written == compiled
    by_babel = {texts.TEXTS[name] for *_, name in texts._UNITS}
    assert set(written) == set(texts.TEXTS.values()) - by_babel
    for ids, strings in written.items():
        pairs = zip(ids, strings, strict=True) if isinstance(ids, tuple) else [(ids, strings)]
        for one, other in pairs:
            assert other
            assert set(re.findall(r"%\(\w+\)\w", one)) == set(re.findall(r"%\(\w+\)\w", other))


NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.timezone.utc)


@pytest.mark.parametrize(
    ("age", "told"),
    [
        ({"seconds": -5}, "just now"),
        ({"seconds": 59}, "just now"),
        ({"seconds": 60}, "1 minute ago"),
        ({"minutes": 2}, "2 minutes ago"),
        ({"minutes": 59, "seconds": 59}, "59 minutes ago"),
        ({"hours": 1}, "1 hour ago"),
        ({"hours": 23, "minutes": 59}, "23 hours ago"),
        ({"days": 1}, "1 day ago"),
        ({"days": 59, "hours": 23}, "59 days ago"),
        ({"days": 60}, "2025-12-31"),
    ],
)
def test_how_long_ago(
    site: Site, monkeypatch: pytest.MonkeyPatch, age: dict[str, int], told: str
) -> None:
    """Ages are in everyday words, and become a date after two months."""
    monkeypatch.setattr(clock, "now", lambda: NOW)
    with site.context():
        assert site.registry.texts.ago(NOW - dt.timedelta(**age)) == told


def test_remembered_to_the_second(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A "remember me" that ends at this very second has ended."""
    with_page(site)
    firefox = signed_in(site)
    now = dt.datetime.now(dt.timezone.utc).replace(microsecond=0)
    monkeypatch.setattr(clock, "now", lambda: now)
    for until, shown in ((now, None), (now + dt.timedelta(seconds=1), 1)):
        site.change(remember_until=until)
        told = see(firefox)["sessions"][0]["remember_until"]
        assert (told is not None) == (shown is not None)


def test_custom_reason(make_site: SiteFactory) -> None:
    """A custom reason is shown unchanged, and as text."""
    site = with_page(make_site())
    firefox = signed_in(site)
    signed_in(site, IPHONE)
    with site.context():
        site.sessions.revoke(site.rows()[1].id, reason="<stolen> laptop")
        site.db.session.commit()
    assert "&lt;stolen&gt; laptop" in page_of(firefox)
    site.change({"user_agent": IPHONE}, revoked_reason=None)
    assert "None" not in page_of(firefox)


# -- devices and places ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user_agent", "name", "kind"),
    [
        (FIREFOX, "Firefox on Linux", "desktop"),
        (FIREFOX.replace("X11;", "X11; Ubuntu;"), "Firefox on Ubuntu", "desktop"),
        (IPHONE, "Safari on iPhone", "phone"),
        (IPHONE.replace("iPhone;", "iPad;"), "Safari on iPad", "tablet"),
        (IPHONE.replace("Version/17.5", "CriOS/131.0.6778.73"), "Chrome on iPhone", "phone"),
        (IPHONE.replace("Version/17.5", "FxiOS/133.0"), "Firefox on iPhone", "phone"),
        (f"{MAC} Version/17.6 Safari/605.1.15", "Safari on macOS", "desktop"),
        (f"{WINDOWS} Chrome/131.0.0.0 Safari/537.36 Edg/131.0.0.0", "Edge on Windows", "desktop"),
        (f"{WINDOWS} Chrome/131.0.0.0 Safari/537.36 OPR/116.0.0.0", "Opera on Windows", "desktop"),
        (
            "Mozilla/5.0 (Windows NT 6.1; Trident/7.0; rv:11.0) like Gecko",
            "Internet Explorer on Windows",
            "desktop",
        ),
        (
            f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {ANDROID} Safari/537.36",
            "Chrome on ChromeOS",
            "desktop",
        ),
        (
            f"Mozilla/5.0 (Linux; Android 10; K) {ANDROID} Mobile Safari/537.36",
            "Chrome on Android",
            "phone",
        ),
        (
            f"Mozilla/5.0 (Linux; Android 13; SM-X906C) {ANDROID} Safari/537.36",
            "Chrome on Android",
            "tablet",
        ),
        (IPHONE.replace("iPhone;", "iPod touch;"), "Safari on iPod", "phone"),
        (IPHONE.partition(" Version")[0] + " Mobile/15E148", "Safari on iPhone", "phone"),
        ("Dalvik/2.1.0 (Linux; U; Android 14; Pixel 8 Build/UQ1A)", "Android", "tablet"),
        (f"{'x' * 60}/1.2 CFNetwork/1410.0.3 Darwin/22.6.0", "x" * 40, "program"),
        ("\u202eEv\til/1.2 CFNetwork/1410.0.3 Darwin/22.6.0", "Ev il", "program"),
        ("curl/7.88.1", "curl", "program"),
        ("Googlebot/2.1 (+http://www.google.com/bot.html)", "Googlebot", "program"),
        (
            "Mozilla/5.0 (Web0S; Linux/SmartTV) AppleWebKit/537.36 (KHTML, like Gecko)"
            " Chrome/94.0.4606.128 Safari/537.36",
            "Chrome on Web0S",
            "unknown",
        ),
        ("Werkzeug/3.1", "Werkzeug", "program"),
        ("OurApp", "OurApp", "program"),
        ("Mozilla/5.0", None, "unknown"),
        ("Mozilla", None, "unknown"),
        ("<script>", None, "unknown"),
        ("x" * 41, None, "unknown"),
        (None, None, "unknown"),
    ],
)
def test_name_of_a_device(user_agent: str | None, name: str | None, kind: str) -> None:
    """Devices have everyday names, and a kind."""
    device = device_of(user_agent)
    assert (device.name, device.kind) == (name, kind)


def test_device_without_a_name(make_site: SiteFactory) -> None:
    """It is called unknown, or by the one name that is known."""
    site = with_page(make_site())
    firefox = signed_in(site)
    for user_agent in ("Mozilla/5.0", "curl/7.88.1", ""):
        signed_in(site, user_agent)
    names = sorted(one["name"] for one in see(firefox)["sessions"])
    assert names == ["Firefox on Linux", "Unknown device", "Unknown device", "curl"]


@given(st.text() | st.text("Mozila/5.0 ()AndroidiPhone;Mobl Safr", min_size=20))
def test_any_user_agent(user_agent: str) -> None:
    """Any user agent results in a short name on one line, or none."""
    device = device_of(user_agent)
    assert device.kind in ("desktop", "phone", "tablet", "program", "unknown")
    assert device.name is None or (0 < len(device.name) <= 90 and device.name.isprintable())


def database_of(folder: Path, kind: str) -> str:
    """Create a GeoIP database in which documentation addresses are in Berlin."""
    writer = MMDBWriter(4, kind, languages=["en", "de"], description="only for tests")
    country = {"iso_code": "DE", "names": {"en": "Germany", "de": "Deutschland"}}
    city = {"names": {"en": "Berlin"}}
    found: dict[str, t.Any] = {"country": country}
    if "Country" not in kind:
        found["city"] = city
    writer.insert_network(IPSet(["203.0.113.0/24"]), found)
    writer.insert_network(IPSet(["198.51.100.0/24"]), {"continent": {"code": "EU"}})
    path = folder / f"{kind}.mmdb"
    writer.to_db_file(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("kind", "language", "place"),
    [
        ("GeoLite2-City", "en", "Berlin, Germany"),
        ("GeoLite2-City", "de", "Berlin, Deutschland"),
        ("GeoLite2-City", "de_AT", "Berlin, Deutschland"),
        ("GeoIP2-Country", "en", "Germany"),
        ("GeoIP2-Country", "fi", "Germany"),
        ("DBIP-Country-Lite", "en", "Germany"),
        ("GeoIP2-Enterprise", "en", "Berlin, Germany"),
    ],
)
def test_place(
    make_site: SiteFactory, tmp_path: Path, kind: str, language: str, place: str
) -> None:
    """The page shows an address's place if known, in the reader's language if possible."""
    site = make_site(SESSION_REGISTRY_GEOIP_DATABASE=Path(database_of(tmp_path, kind)))
    flask_babel.Babel(site.app, locale_selector=lambda: language)
    with_page(site)
    firefox = signed_in(site)
    for address in ("203.0.113.7", "198.51.100.1", "192.0.2.1", "2001:db8::1", None):
        other = signed_in(site, f"On {address}")
        site.change({"user_agent": other.name}, ip_address=address)
    places = {one["user_agent"]: one["place"] for one in see(firefox)["sessions"]}
    assert places.pop("On 203.0.113.7") == place
    assert set(places.values()) == {None}
    assert f"<bdi>{place}</bdi>" in page_of(firefox)


@pytest.mark.parametrize("content", [None, b"no database", "GeoLite2-ASN"])
def test_invalid_geoip_database(
    make_site: SiteFactory, tmp_path: Path, content: bytes | str | None
) -> None:
    """A missing, broken or different database stops the app."""
    path = tmp_path / "places.mmdb"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path = Path(database_of(tmp_path, content))
    with pytest.raises(ConfigurationError, match="is not a readable GeoIP2 database"):
        make_site(SESSION_REGISTRY_GEOIP_DATABASE=str(path))


def test_device_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An app names a device, in a mail for example, as the page does."""
    site.browser("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0").login()
    site.browser("").login()
    with site.context():
        rows = site.sessions.active(site.user("ann"))
        assert {site.sessions.device_name(row) for row in rows} == {"Firefox on Linux", None}
        monkeypatch.delitem(sys.modules, "flask_session_registry._web.user_agents")
        monkeypatch.setitem(sys.modules, "ua_parser", None)
        with pytest.raises(ConfigurationError, match=r"ua_parser.*'Flask-Session-Registry\[web\]'"):
            site.sessions.device_name(rows[0])


@pytest.mark.parametrize("missing", ["flask_wtf", "ua_parser"])
def test_page_without_what_it_needs(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """The error says what to install."""
    site = make_site()
    for name in ("views", "presenter", "user_agents"):
        monkeypatch.delitem(sys.modules, f"flask_session_registry._web.{name}")
        monkeypatch.delattr(_web, name)
    for name in [one for one in sys.modules if one.partition(".")[0] == missing]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=rf"{missing}.*'Flask-Session-Registry\[web\]'"):
        _ = site.sessions.blueprint


def test_places_without_what_they_need(
    make_site: SiteFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app stops, and the error says what to install."""
    monkeypatch.delitem(sys.modules, "flask_session_registry._web.geoip", raising=False)
    monkeypatch.setitem(sys.modules, "geoip2.database", None)
    with pytest.raises(ConfigurationError, match=r"'Flask-Session-Registry\[geoip\]'"):
        make_site(SESSION_REGISTRY_GEOIP_DATABASE=str(tmp_path))
