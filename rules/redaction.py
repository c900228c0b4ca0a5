"""Redaction: removes what looks like a credential from a text that an agent or a person is going to read.

A platform's error messages quote requests, headers and connection strings. A false alarm costs a reader one word, a
miss hands out a key, so what is doubtful is removed. Identifiers that people search their logs for stay: UUIDs,
instants, paths and names.

Must never: be the only protection. A text reaches agents only where the operator shares details.
"""

import re
from itertools import pairwise
from string import ascii_letters, digits

REMOVED = "[removed]"
# What a cut may not part: a run of these may be a credential.
_OF_A_CREDENTIAL = f"{ascii_letters}{digits}_+/=.~%@#$^*!-"

# A block that was cut off has no last line.
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.DOTALL)
_URL_USER = re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://)[^\s/?#\"'<>]*@", re.IGNORECASE)
# A URL at the end of a text may be cut before its `@`; only digits after the colon are a port.
_URL_CUT = re.compile(
    r"\b([a-z][a-z0-9+.-]{0,30}://)(?!\[)[^\s/?#\"'<>@:]*:(?!\d*\W*\Z)[^\s/?#\"'<>@]+\Z", re.IGNORECASE
)
_HEADER = re.compile(r"\b((?:proxy-)?authorization|(?:set-)?cookie)(['\"]?\s*[:=]\s*)[^\r\n]+", re.IGNORECASE)
_SCHEME = re.compile(r"\b(bearer|basic)(\s*:\s*|\s+)([A-Za-z0-9._~+/=-]{6,})", re.IGNORECASE)
# `max_tokens=512` and `bypass=true` are no secrets; `dbPassword`, `X-Api-Key` and `client_secret` are.
_NAME_START = r"(?<![A-Za-z0-9_.-])[A-Za-z0-9_.-]*"
_NAME_END = r"(?-i:(?![a-z]))(?:[_-](?:base|value|hash|\d+))?"
_WORDS = r"passwords?|passwd|passphrase|pwd|secrets?|token|credentials?|jwt"
_KEYS = r"api|access|private|signing|secret|account|shared|encryption"
_SECRET_NAME = (
    rf"{_NAME_START}(?:{_WORDS}|(?:{_KEYS})[_-]?key|sess(?:ion)?[_-]?id"
    rf"|(?<![A-Za-z])(?:pass|sig|signature|auth)){_NAME_END}"
)
_VALUE_CHARACTER = r"[^\s,;&\"')\]}]"
_ASSIGNMENT = re.compile(
    rf"({_SECRET_NAME})"
    r"(\\?['\"]?\s*(?:=>|[:=](?!>))\s*)(?!\[removed\])"
    rf"(\\?\"(?:[^\"\\]|\\.)*\"?|'(?:[^'\\]|\\.)*'?|{_VALUE_CHARACTER}+)",
    re.IGNORECASE,
)
# Without a sign between name and value, as in "password is hunter2" and "--token abc12345", a sentence may go on:
# only what mixes letters with digits or signs, or is a long number, is taken for a value.
_SPOKEN = re.compile(
    rf"({_NAME_START}(?:{_WORDS}|(?:{_KEYS})[ _-]?key|(?<=--)(?:pass|auth)){_NAME_END})"
    r"((?:\s+(?:is|was|provided))?(?:\s*[:=]\s*|\s+)['\"]?)"
    rf"((?={_VALUE_CHARACTER}*[A-Za-z])(?={_VALUE_CHARACTER}*[0-9@#$%^*+~]){_VALUE_CHARACTER}{{6,}}|\d{{8,}})",
    re.IGNORECASE,
)
# Paths, instants and algorithms of JSON web tokens.
_NO_SECRET = re.compile(r"/[\w.-]+(?:/[\w.-]+)+:?|\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-][\d:]+)?|[EHPR]S\d{3}K?\.?")
# "Secret my-app-db-7 not found" names an object of Kubernetes.
_OBJECT_NAME = re.compile(r"[a-z]+(?:-[a-z]+)+-\d{1,3}[.:]?")
# `-u 1000:1000` are the ids of a user and its group, `-u https://...` is a URL.
_USER_VALUE = (
    r"(?!\d+:\d+(?!\S)|['\"]?[^\s:='\"]*:(?://|\[removed\]))"
    r"('[^\s:='\"]*:[^'\r\n]*'?\S*|\"[^\s:='\"]*:[^\"\r\n]*\"?\S*|[^\s:='\"]+:\S+)"
)
_USER_OPTION = re.compile(rf"(?<!\S)((?:--user|--proxy-user)(?:\s+|=)?){_USER_VALUE}")
# Of other programs, as in `python -u worker.py:main`, it is no user.
_SHORT_USER_OPTION = re.compile(rf"(?<!\S)(-u(?:\s+|=)?){_USER_VALUE}")
_HAS_SHORT_USER_OPTION = re.compile(r"\b(?:curl|wget)\b", re.IGNORECASE)
_PASSWORD_OPTION = re.compile(r"(\bsshpass\s+-p\s*)('[^'\r\n]*'?\S*|\"[^\"\r\n]*\"?\S*|\S+)")
_KNOWN = re.compile(
    r"\beyJ[A-Za-z0-9_-]{5,2000}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)*"  # JSON web tokens; bounded, or it is quadratic
    r"|\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA)[A-Z0-9]{12,}\w*"  # AWS
    r"|\bgh[opsur]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bglpat-[\w-]{16,}"  # GitHub, GitLab
    r"|\bxox[a-z]-[\w-]{8,}|\bxapp-[\w-]{8,}|hooks\.slack\.com/services/[\w/]+"  # Slack
    r"|\bsk-[\w-]{12,}|\b[prs]k_(?:live|test)_\w{8,}|\bwhsec_[\w+/=]{8,}"  # OpenAI and the like, Stripe
    r"|\bAIza[\w-]{20,}|\bya29\.[\w-]{16,}|\bnpm_\w{16,}|\bpypi-[\w-]{16,}|\bhf_\w{16,}"  # Google, npm, PyPI, ...
)
# A `=` only ends a token: before one stands a name.
_RUN = re.compile(r"[A-Za-z0-9+/_-]{20,}=*")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
# Of neighbouring characters of a random token, 40 % (hexadecimal) to 62 % (base 62) are of different classes; of
# names made of words and numbers, about one in seven.
_RANDOM_SHARE = 0.25


def redacted(text: str) -> str:
    """The text with `[removed]` in place of what looks like a credential. It may be applied twice."""
    text = _PEM.sub(REMOVED, text)
    text = _URL_USER.sub(rf"\1{REMOVED}@", text)
    text = _HEADER.sub(rf"\1\2{REMOVED}", text)
    text = _SCHEME.sub(_without_token, text)
    text = _ASSIGNMENT.sub(rf"\1\2{REMOVED}", text)
    text = _SPOKEN.sub(_without_value, text)
    text = _USER_OPTION.sub(rf"\1{REMOVED}", text)
    if _HAS_SHORT_USER_OPTION.search(text):
        text = _SHORT_USER_OPTION.sub(rf"\1{REMOVED}", text)
    text = _PASSWORD_OPTION.sub(rf"\1{REMOVED}", text)
    text = _KNOWN.sub(REMOVED, text)
    text = _RUN.sub(_unless_random, text)
    return _URL_CUT.sub(rf"\1{REMOVED}", text)


def beginning(text: str, longest: int) -> str:
    """At most the first `longest` characters; where there are more, without the word that the cut would halve.

    Half a credential is not recognised as one. A text that is cut before it is redacted is cut by this.
    """
    if len(text) <= longest:
        return text
    start = text[:longest]
    return start.rstrip(_OF_A_CREDENTIAL) or start


def _without_token(match: "re.Match[str]") -> str:
    """ "Basic authentication failed" is no credential: a word of small letters."""
    scheme, separator, token = match.groups()
    is_a_word = token.rstrip(".").islower() and token.rstrip(".").isalpha()
    return match[0] if is_a_word else f"{scheme}{separator}{REMOVED}"


def _without_value(match: "re.Match[str]") -> str:
    """ "secret /run/secrets/db_1" is no credential: a path."""
    name, separator, value = match.groups()
    is_name = name.lower() in ("secret", "secrets") and _OBJECT_NAME.fullmatch(value)
    return match[0] if is_name or _NO_SECRET.fullmatch(value) else f"{name}{separator}{REMOVED}"


def _unless_random(match: "re.Match[str]") -> str:
    run = match[0]
    return REMOVED if _looks_random(_UUID.sub("", run)) else run


def _looks_random(run: str) -> bool:
    """Whether a run changes between small letters, capitals and digits as often as a random token does."""
    classes = [_class_of(character) for character in run if character.isalnum()]
    if not any(character.isdigit() for character in run) or len(classes) < 16:
        return False
    changes = sum(1 for before, after in pairwise(classes) if before != after)
    return changes >= _RANDOM_SHARE * (len(classes) - 1)


def _class_of(character: str) -> str:
    if character.isdigit():
        return "digit"
    return "capital" if character.isupper() else "letter"
