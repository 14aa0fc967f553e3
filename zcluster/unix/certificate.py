"""The certificate and its key: files of the operator, made into the one TLS context that all workers share.

Invariant: `load` never waits and never asks. A terminal may be there, but nobody who answers: an encrypted key is
refused, and so is what is no regular file.

It is called twice: by the launcher, for its errors alone, before anything is started; and by each zygote, before it
forks. The workers of a generation so have the same ticket keys, and a session begun with one resumes with any other
(RFC 5077, RFC 8446 section 2.2). A reload makes a new zygote, which reads the files anew (a renewed certificate).
"""

import ssl
import stat
from pathlib import Path
from typing import Final

from zcluster.errors import ConfigError

FILE_MAX_BYTES: Final = 1 << 20  # a long chain has 20 KiB; whoever names a disk image by mistake is told at once

_WHY: Final = {
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate; the server's own stands first in a chain",
    "NO_CERTIFICATE_ASSIGNED": "the key does not belong to the first certificate in it, which must be the server's",
    "EE_KEY_TOO_SMALL": "the key is too short to be safe; make one of RSA 2048 or EC P-256 at least",
    "CA_MD_TOO_WEAK": "it is signed with an outdated digest; have it signed with SHA-256",
    "BAD_BASE64_DECODE": "it is damaged: this is not the Base64 of PEM",
    "BAD_END_LINE": "it is damaged: an END line is missing",
}


class _IsEncrypted(Exception):
    """OpenSSL wants a passphrase."""


def load(certfile: str, keyfile: str) -> ssl.SSLContext:
    """Return a server's context; `keyfile` "" means that the key stands in `certfile`.

    TLS 1.2 at least and no renegotiation; ciphers are those of Python, which leaves out what is broken. Raises
    `ConfigError` naming the file and what is wrong with it.
    """
    _require(certfile, "certificate", b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED CERTIFICATE-----")
    _require(keyfile or certfile, "private key", b"PRIVATE KEY-----")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996: the older ones must not be used
    context.options |= ssl.OP_NO_RENEGOTIATION  # one client could make us compute for a hundred
    context.set_alpn_protocols(["http/1.1"])
    files = f"certificate {certfile!r}" + (f" with the key {keyfile!r}" if keyfile else "")
    try:
        context.load_cert_chain(certfile, keyfile or None, password=_refuse_to_ask)
    except _IsEncrypted:
        raise ConfigError(
            f"the private key in {keyfile or certfile!r} is encrypted, and nobody can be asked for its passphrase; "
            "decrypt it (openssl pkey -in OLD -out NEW) and protect the file by its permissions"
        ) from None
    except ssl.SSLError as error:
        why = _WHY.get(error.reason or "", f"OpenSSL says {error.reason or error.strerror or error}")
        raise ConfigError(f"cannot use the {files}: {why}") from None
    except OSError as error:  # it was there a moment ago
        raise ConfigError(f"cannot use the {files}: {error.strerror}") from None
    return context


def _refuse_to_ask() -> str:
    raise _IsEncrypted


def _require(file: str, what: str, *marks: bytes) -> None:
    """Raise for a file that cannot hold it; OpenSSL's own words for all of these are "PEM lib"."""
    path = Path(file)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"the {what} {file!r} is no regular file; every new generation reads it again")
        with path.open("rb") as opened:
            text = opened.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {file!r}: {error.strerror}") from None
    if len(text) > FILE_MAX_BYTES or not any(mark in text for mark in marks):
        hint = "; give the key's file with --keyfile" if what == "private key" else ""
        raise ConfigError(f"{file!r} holds no {what} in PEM form{hint}")
