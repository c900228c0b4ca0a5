"""Redaction: what looks like a credential goes, and what a reader needs stays."""

import base64
import random
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.redaction import REMOVED, redacted

# pragma: allowlist nextline secret
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\nq8Zr\n-----END RSA PRIVATE KEY-----"
# pragma: allowlist nextline secret
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
CREDENTIALS = {  # the text: what of it must be gone
    "a bearer token": ("401 for Authorization: Bearer abc.def-123", "abc.def-123"),
    "a bearer token without a header's name": ("sent bearer 7f3a9c2e", "7f3a9c2e"),
    "a basic token": ("Basic dXNlcjpodW50ZXIy was refused", "dXNlcjpodW50ZXIy"),
    "a header with a scheme of its own": ("{'authorization': 'Key hunter2'}", "hunter2"),
    "a cookie": ("cookie: sid=hunter2; theme=dark", "hunter2"),
    "a password": ("login failed: password=hunter2, user=ada", "hunter2"),
    "a password in quotes": ('{"password": "hunter two", "user": "ada"}', "hunter two"),  # pragma: allowlist secret
    "a password in escaped quotes": (r"body {\"password\": \"hunter2\"}", "hunter2"),
    "a password in single quotes": ("{'db_password': 'hunter, two'}", "hunter, two"),  # pragma: allowlist secret
    "a variable": ("DB_PASS=hunter2 is wrong", "hunter2"),
    "a name in camel case": ("dbPassword: hunter2", "hunter2"),
    "a client's secret": ("client_secret=hunter2&grant=x", "hunter2"),
    "a token in a query": ("GET /v1?token=hunter2&page=3", "hunter2"),
    "an access token": ("access_token => hunter2", "hunter2"),
    "an API key": ("x-api-key: hunter2", "hunter2"),
    "an API key without a separator": ("apikey=hunter2", "hunter2"),
    "a signature in a URL": ("https://b.example/x?sv=2&sig=hun%2Fter2", "hun%2Fter2"),
    "a connection string": ("postgresql://ada:hunter2@db:5432/x refused", "hunter2"),  # pragma: allowlist secret
    "a password with an at sign": ("redis://:hunt@er2@cache/0", "hunt@er2"),
    "a URL with a token as its user": ("https://hunter2@github.com/x.git", "hunter2"),
    "a JSON web token": (f"expired {JWT}", "eyJ"),
    "a PEM block": (f"bad key {PEM} here", "MIIE"),
    "a PEM block that was cut off": (PEM[:60], "MIIE"),
    "an AWS key": ("AKIAIOSFODNN7EXAMPLE is disabled", "AKIAIOSFODNN7"),  # pragma: allowlist secret
    "an AWS secret": ("signed with wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "K7MDENG"),
    "a GitHub token": ("remote: ghp_16C7e42F292c6912E7710c838347Ae178B4a", "ghp_16"),  # pragma: allowlist secret
    "a fine-grained GitHub token": ("github_pat_11ABCDEFG0aaaaaaaaaaaa_bbbbbbbb", "11ABC"),
    "a Slack token": ("xoxb-2345678901-abcdefghij", "xoxb"),  # pragma: allowlist secret
    "a Slack webhook": ("post to https://hooks.slack.com/services/T00/B00/xyz", "T00"),  # pragma: allowlist secret
    "an OpenAI key": ("Incorrect API key provided: sk-proj-abcdefGHIJKL1234.", "sk-proj"),
    "a Stripe key": ("sk_live_4eC39HqLyjW", "4eC39"),
    "a Google key": ("AIzaSyA-1234567890abcdefghijklmnopqrs", "AIza"),  # pragma: allowlist secret
    "a password after an option": ("psql --password hunter2 failed", "hunter2"),
    "a token after an option": ("login --token abc12345", "abc12345"),
    "an API key after an option": ("--api-key k3y-abc", "k3y-abc"),
    "a password in a sentence": ("the password is hunter2 for db", "hunter2"),
    "a quoted password in a sentence": ("Login failed for user sa with pwd 'Tr0ub4dor'", "Tr0ub4dor"),
    "a long number": ("token 1234567890 expired", "1234567890"),
    "an API key in a sentence": ("api key abcd1234efgh5678 refused", "abcd1234"),
    # pragma: allowlist nextline secret
    "an API key of an unknown make": ("Incorrect API key provided: abc123def.", "abc123def"),
    "a bearer token after a colon": ("Bearer: abcdef12345678", "abcdef"),
    "a user of curl": ("curl -u admin:s3cr3t https://x.example/z", "s3cr3t"),
    "a quoted user of curl": ("curl --user 'admin:correct horse' x", "horse"),
    "a password of sshpass": ("sshpass -p hunter ssh host", "hunter"),
    "a connection string that was cut off": ("could not connect to postgresql://ada:hunt", "hunt"),
    "a key glued to another": ("AKIAABCDEFGHIJKLMNOPeyJabcde.x", "eyJ"),  # pragma: allowlist secret
    "a password that looks like the name of an object": ("--password my-app-db-7", "my-app"),
    "hexadecimal": ("nonce 9f86d081884c7d659a2feaa0c55ad015", "9f86d081"),
}
KEPT = [
    "Bearer authentication failed",
    "Basic authentication is not supported",
    "max_tokens=512 is over the limit; prompt_tokens: 4097",
    "the tokenizer rejected token 17",
    "rate limit reached for gpt-4o-mini-2024-07-18 in organization org-ada: 30000 TPM",
    "request 123e4567-e89b-12d3-a456-426614174000 timed out after 90.0 s",
    "2026-11-22T12:00:00.123456+00:00 upstream 503: no healthy upstream",
    'File "/usr/lib/python3.11/site-packages/httpx/_transports/default.py", line 69',
    "HTTPSConnectionPool(host='api.example.com', port=443): Max retries exceeded with url: /v1/chat",
    "requests.exceptions.ConnectionError: NewConnectionError, bypass=true, compass: north",
    "CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 23.69 GiB total capacity)",
    "research_synthesis-2026-11-22-0017 was cancelled",
    "ada@example.com has no mailbox",
    "the password was wrong",
    "the password is required and must have 8 characters",
    "token limit exceeded: 4096 tokens",
    "Unexpected token 'o', \"not json\" is not valid JSON",
    "JWT RS256 is not accepted; the token was revoked!",
    "api key missing",
    "invalid API key: permission denied",
    "missing --api-key in command",
    "key error in field customer_id",
    "id=123e4567-e89b-12d3-a456-426614174000 and task-123e4567-e89b-12d3-a456-426614174000 timed out",
    "docker run -u 1000:1000 image",
    "docker run -u app:app image",
    "python -u worker.py:main",
    "date -u +%H:%M:%S",
    "secret /run/secrets/db_1 is not mounted",
    "token was 2026-11-22T10:00:00Z",
    "Secret my-app-db-7 not found",
    'secrets "my-app-db-7" not found',
    "JWT ES256K",
    "curl -u https://example.com/x",
    "no route to http://localhost:8080",
    "Basic: unsupported",
    "",
]

# What a text is made of that is to keep it busy.
PIECES = [
    *(" ", ".", "a", "7", "=", ": ", "'", '"', "\\", "@", "\n", "]", "x1y2z3w4", "hunter2", "a.", "://", "s://u:"),
    *(
        "token",
        "api key",
        "password is ",
        "--token ",
        "-u ",
        "-u a:",
        "-u=",
        "curl -u a",
        "eyJaaaaa-",
        "sshpass -p ",
        "Bearer",
        "cookie",
        REMOVED,
    ),
]


@pytest.mark.parametrize(("text", "secret"), CREDENTIALS.values(), ids=CREDENTIALS)
def test_what_looks_like_a_credential_is_removed(text: str, secret: str) -> None:
    shown = redacted(text)

    assert secret in text
    assert secret not in shown
    assert REMOVED in shown
    assert redacted(shown) == shown


@pytest.mark.parametrize("text", KEPT)
def test_what_a_reader_needs_stays(text: str) -> None:
    assert redacted(text) == text


def test_what_stands_beside_a_credential_stays() -> None:
    assert redacted("password=hunter2, user=ada") == f"password={REMOVED}, user=ada"
    # pragma: allowlist nextline secret
    assert redacted("postgresql://ada:hunter2@db:5432/x refused") == f"postgresql://{REMOVED}@db:5432/x refused"


def test_random_tokens_of_any_alphabet_are_removed() -> None:
    source = random.Random(7)
    letters = string.ascii_letters + string.digits
    alphabets = ["0123456789abcdef", string.ascii_lowercase + string.digits, letters, letters + "+/"]
    tokens = ["".join(source.choices(alphabet, k=40)) for alphabet in alphabets for _ in range(250)]

    kept = [token for token in tokens if redacted(f"with {token} it failed").find(token) >= 0]

    assert len(kept) <= 0.02 * len(tokens), kept[:5]


@given(st.text(max_size=300))
def test_any_text_can_be_redacted_and_twice_is_the_same_as_once(text: str) -> None:
    once = redacted(text)

    assert redacted(once) == once


def cpu_s(text: str) -> float:
    began = time.process_time()
    redacted(text)
    return time.process_time() - began


@pytest.mark.parametrize("piece", PIECES)
def test_a_hostile_text_takes_no_longer_than_its_length(piece: str) -> None:
    short, long = (min(cpu_s(f"password {piece * times}") for _ in range(3)) for times in (1_000, 20_000))

    # 20 times as long takes some 20 times as long. What grows with the square of the length takes 400 times.
    assert long < 100 * short


@given(
    st.binary(min_size=24, max_size=60), st.sampled_from(["bearer ", "api_key=", "Authorization: Basic ", "token: "])
)
def test_a_token_after_its_name_is_removed_whatever_it_holds(token: bytes, name: str) -> None:
    encoded = base64.b64encode(token).decode()

    assert encoded not in redacted(f"failed with {name}{encoded}")
