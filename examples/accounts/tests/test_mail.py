"""The app's mail, sent to a real server. Mail without a server is in ``test_accounts.py``."""

from __future__ import annotations

import datetime as dt
import email
import email.policy
import ipaddress
import queue
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from accounts import config, mail
from accounts.cli import USERS
from accounts.extensions import sessions
from accounts.models import User
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask

if TYPE_CHECKING:
    from tests.conftest import Browser

ANN = USERS[0][0]
SENDER = "accounts@example.com"
HOST = "127.0.0.1"
LOGIN = {"MAIL_USE_TLS": "1", "MAIL_USERNAME": "accounts", "MAIL_PASSWORD": "let me in"}
#: The most seconds to wait for anything.
PATIENCE = 60


class PostOffice:
    """A mail server, and the mail delivered to it."""

    def __init__(self, certificate: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = probe.getsockname()[1]
        self.refuses = False
        self._handed_in: queue.Queue[tuple[Envelope, Session]] = queue.Queue()
        self._server: Controller | None = Controller(
            self,
            hostname=HOST,
            port=self.port,
            ready_timeout=PATIENCE,
            tls_context=context,
            authenticator=self._authenticate,
        )
        self._server.start()

    async def handle_RCPT(
        self,
        _server: SMTP,
        _session: Session,
        envelope: Envelope,
        address: str,
        _options: list[str],
    ) -> str:
        if self.refuses:
            return f"550 <{address}> is not known here"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:
        self._handed_in.put((envelope, session))
        return "250 OK"

    def next(self) -> tuple[EmailMessage, Envelope, Session]:
        """Return the next mail, its envelope and its connection."""
        envelope, session = self._handed_in.get(timeout=PATIENCE)
        content = envelope.content
        assert isinstance(content, bytes)
        message = email.message_from_bytes(content, policy=email.policy.default)
        return message, envelope, session

    def is_empty(self) -> bool:
        """Return whether there is no other mail, and none on its way."""
        wait_for_the_postmen()
        return self._handed_in.empty()

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def _authenticate(
        self,
        _server: SMTP,
        _session: Session,
        _envelope: Envelope,
        _mechanism: str,
        data: LoginPassword,
    ) -> AuthResult:
        wanted = (LOGIN["MAIL_USERNAME"].encode(), LOGIN["MAIL_PASSWORD"].encode())
        return AuthResult(success=(data.login, data.password) == wanted, handled=False)


def wait_for_the_postmen() -> None:
    """Wait until each mail is delivered or abandoned."""
    for thread in threading.enumerate():
        if thread.name == "mail":
            thread.join(PATIENCE)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with an untrusted certificate for this machine, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Mail server")])
    now = dt.datetime.now(dt.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "certificate.pem"
    pem = serialization.Encoding.PEM
    path.write_bytes(
        certificate.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def office(certificate: Path) -> Iterator[PostOffice]:
    office = PostOffice(certificate)
    yield office
    wait_for_the_postmen()
    office.close()


@pytest.fixture
def environ(office: PostOffice, request: pytest.FixtureRequest) -> dict[str, str]:
    return {
        "MAIL_SERVER": HOST,
        "MAIL_PORT": str(office.port),
        "MAIL_DEFAULT_SENDER": SENDER,
        **getattr(request, "param", {}),
    }


def parts(message: EmailMessage) -> tuple[str, str]:
    """Return the text and HTML parts of a mail that has exactly these alternatives."""
    kinds = [part.get_content_type() for part in message.walk() if part.is_multipart()]
    assert kinds[-1] == "multipart/alternative"
    text, html = (part for part in message.walk() if not part.is_multipart())
    assert (text.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    return text.get_content(), html.get_content()


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the app has logged, without the mail server's lines."""
    return [record.getMessage() for record in caplog.records if record.name == "accounts"]


# -- a new device ------------------------------------------------------------------------------


def test_new_device(app: Flask, firefox: Browser, office: PostOffice) -> None:
    """The owner is told when, where and with what device someone signed in, and what to do."""
    firefox.sign_in()
    message, envelope, _ = office.next()
    assert (envelope.mail_from, envelope.rcpt_tos) == (SENDER, [ANN])
    assert (message["From"], message["To"]) == (SENDER, ANN)
    assert message["Subject"] == "A new device has signed in to your account"
    text, html = parts(message)
    for part in (text, html):
        assert re.search(
            r"on \d{4}-\d\d-\d\d \d\d:\d\d UTC, from 127\.0\.0\.1, with\s+Firefox\.", part
        )
        assert "If this was you, there is nothing to do." in part
    links = re.findall(r"http://\S+", text)
    assert links == re.findall(r'href="([^"]+)"', html)
    with app.app_context():
        (row,) = sessions.active(User.with_email(ANN))
    assert links == [
        f"http://localhost/account/sessions/{row.id}/revoke",
        "http://localhost/account/password",
    ]
    titles = [re.search("<h1>(.*)</h1>", firefox.get(link).text)[1] for link in links]
    assert titles == ["Where you&#39;re signed in", "Change the password"]
    assert firefox.client.get_cookie("session").value.encode() not in envelope.content
    assert office.is_empty()


def test_known_device(firefox: Browser, chrome: Browser, office: PostOffice) -> None:
    """Signing in again in the same browser sends no mail; another browser sends one."""
    firefox.sign_in()
    assert "Firefox" in parts(office.next()[0])[0]
    firefox.post("/signout", on="/account")
    firefox.sign_in()
    assert office.is_empty()
    chrome.sign_in()
    assert "Chrome" in parts(office.next()[0])[0]
    assert office.is_empty()


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        ("<img src=//evil.example>", "an unknown device"),
        ('"><script>alert(1)</script>', "an unknown device"),
        ("Fire\r\nBcc: eve@example.com\r\n\r\nfox", "Fire"),
        ("Fire\r\n.\r\nQUIT\r\nfox", "Fire"),
        ("{{ config }}{% raw %}", "an unknown device"),
        ("\u202exoferiF\u2066\u200f", "an unknown device"),
        ("Firefox 🦊", "Firefox"),
        ("🦊" * 15_000, "an unknown device"),
        ('"' * 60_000, "an unknown device"),
        ("a" * 60_000, "an unknown device"),
        ("", "an unknown device"),
    ],
)
def test_user_agent_is_only_text(
    app: Flask, firefox: Browser, office: PostOffice, user_agent: str, name: str
) -> None:
    """A hostile user agent adds no markup, header or recipient to the mail, and is shortened."""
    # Directly before the app, as from a server that passes everything on.
    inner = app.wsgi_app

    def named(environ: dict[str, Any], start_response: Any) -> Any:
        return inner(environ | {"HTTP_USER_AGENT": user_agent}, start_response)

    app.wsgi_app = named
    firefox.sign_in()
    message, envelope, _ = office.next()
    assert envelope.rcpt_tos == [ANN]
    headers = ["Content-Type", "Date", "From", "MIME-Version", "Message-ID", "Subject", "To"]
    assert sorted(message.keys()) == headers
    assert not message.defects
    text, html = parts(message)
    assert f"with {name}." in text
    assert f"with {name}." in " ".join(html.split())
    assert len(text) < 1000
    assert text.splitlines()[1] == "If this was you, there is nothing to do."
    assert not re.search("<img|<script|[\u202e\u2066\u200f]", html)
    assert office.is_empty()


# -- a forgotten password ----------------------------------------------------------------------


def test_forgotten_password(firefox: Browser, office: PostOffice) -> None:
    """The reset link arrives as text, and leads to the page that sets a new password."""
    firefox.post("/forgot", {"email": ANN}, on="/forgot")
    message, envelope, _ = office.next()
    assert envelope.rcpt_tos == [ANN]
    assert message["Subject"] == "Choose a new password"
    assert message.get_content_type() == "text/plain"
    link = re.search(r"http://localhost(/reset/\S+)", message.get_content())[1]
    assert "Choose a new password" in firefox.get(link).text


def test_unknown_address_gets_no_mail(firefox: Browser, office: PostOffice) -> None:
    """An address without an account gets no link."""
    firefox.post("/forgot", {"email": "nobody@example.com"}, on="/forgot")
    assert office.is_empty()


# -- the server --------------------------------------------------------------------------------


def test_server_is_down(
    firefox: Browser, office: PostOffice, caplog: pytest.LogCaptureFixture
) -> None:
    """With the mail server down, signing in works. The failure is logged without the recipient."""
    office.close()
    firefox.sign_in()
    assert firefox.user == ANN
    wait_for_the_postmen()
    (message,) = logged(caplog)
    assert "not sent, because of 'ConnectionRefusedError'" in message
    assert ANN not in caplog.text


def test_server_refuses(
    firefox: Browser, office: PostOffice, caplog: pytest.LogCaptureFixture
) -> None:
    """If the server rejects a mail and names the recipient, the log still doesn't."""
    office.refuses = True
    firefox.sign_in()
    assert firefox.user == ANN
    assert office.is_empty()
    (message,) = logged(caplog)
    assert "not sent, because of 'SMTPRecipientsRefused'" in message
    assert ANN not in caplog.text


def test_server_hangs(
    firefox: Browser,
    office: PostOffice,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Signing in doesn't wait for a server that accepts a connection and never answers."""
    monkeypatch.setattr(mail, "TIMEOUT", PATIENCE)
    office.close()
    with socket.create_server((HOST, office.port)) as server:
        firefox.sign_in()
        assert firefox.user == ANN
        # The mail is still waiting: had the login waited for it, this would be logged by now.
        assert logged(caplog) == []
        server.settimeout(PATIENCE)
        server.accept()[0].close()
    wait_for_the_postmen()
    (message,) = logged(caplog)
    assert "not sent, because of 'SMTPServerDisconnected'" in message


def test_hanging_server_is_abandoned(
    firefox: Browser,
    office: PostOffice,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the timeout the mail is abandoned, so that nothing piles up."""
    monkeypatch.setattr(mail, "TIMEOUT", 0.1)
    office.close()
    with socket.create_server((HOST, office.port)):
        firefox.sign_in()
        wait_for_the_postmen()
    (message,) = logged(caplog)
    assert "A mail was not sent" in message


@pytest.mark.parametrize("environ", [LOGIN], indirect=True)
def test_tls(
    firefox: Browser, office: PostOffice, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``MAIL_USE_TLS``, the app logs in to the server and sends the mail encrypted."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    firefox.sign_in()
    message, _, session = office.next()
    assert message["To"] == ANN
    assert session.ssl is not None
    assert session.authenticated


@pytest.mark.parametrize("environ", [LOGIN], indirect=True)
def test_untrusted_server(
    firefox: Browser, office: PostOffice, caplog: pytest.LogCaptureFixture
) -> None:
    """A server with an untrusted certificate gets neither the password nor the mail."""
    firefox.sign_in()
    assert firefox.user == ANN
    assert office.is_empty()
    (message,) = logged(caplog)
    assert "not sent, because of 'SSLCertVerificationError'" in message


@pytest.mark.parametrize("environ", [LOGIN | {"MAIL_PASSWORD": "wrong"}], indirect=True)
def test_wrong_password_for_the_server(
    firefox: Browser,
    office: PostOffice,
    certificate: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong password for the mail server is logged, and breaks nothing."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    firefox.sign_in()
    assert firefox.user == ANN
    assert office.is_empty()
    (message,) = logged(caplog)
    assert "not sent, because of 'SMTPAuthenticationError'" in message


def test_server_without_a_sender_stops_the_app(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A mail server without a sender address stops the app.

    Otherwise each mail would be refused, and only the log would say so.
    """
    monkeypatch.setenv("MAIL_SERVER", HOST)
    monkeypatch.delenv("MAIL_DEFAULT_SENDER", raising=False)
    with pytest.raises(RuntimeError, match="Set 'MAIL_DEFAULT_SENDER' to an address"):
        config.from_environ(tmp_path)
