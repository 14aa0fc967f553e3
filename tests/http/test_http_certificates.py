"""The certificate and its key: what is wrong is found at the start, named, and nobody is asked."""

import os
import ssl
import time

import pytest
from tls_rig import make_certificate, openssl, pem

from zcluster.errors import ConfigError
from zcluster.unix.certificate import load

__all__ = ["pem"]


@pytest.fixture
def files(tmp_path, pem):
    """A function that makes a file of these contents and returns its name."""

    def make(name, contents):
        path = tmp_path / name
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        return str(path)

    return make


def refused(cert, key=""):
    """Load and return the error's text; it takes no time, whatever the files are."""
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load(str(cert), str(key))
    assert time.monotonic() - begun < 20  # and not for ever, as who asks for a passphrase
    return str(caught.value)


def test_two_files_or_one(pem, files):
    """The key may stand in the certificate's file, before or behind it."""
    cert, key = (path.read_text() for path in pem)
    for context in (load(*map(str, pem)), load(files("a", cert + key), ""), load(files("b", key + cert), "")):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.options & ssl.OP_NO_RENEGOTIATION
        assert context.verify_mode == ssl.CERT_NONE


def test_an_rsa_key_and_a_chain(tmp_path):
    """What a CA sends: the server's certificate and the one that signed it, with an RSA key."""
    ca, ca_key = make_certificate(tmp_path, "ca")
    key, wish, cert = tmp_path / "rsa.key", tmp_path / "rsa.csr", tmp_path / "rsa.pem"
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", wish, "-subj", "/CN=rsa")
    openssl("x509", "-req", "-in", wish, "-CA", ca, "-CAkey", ca_key, "-out", cert, "-days", "2")
    chain = tmp_path / "chain.pem"
    chain.write_text(cert.read_text() + ca.read_text())
    assert load(str(chain), str(key)).cert_store_stats()["x509"] == 0
    swapped = tmp_path / "swapped.pem"
    swapped.write_text(ca.read_text() + cert.read_text())
    assert "the first certificate in it, which must be the server's" in refused(swapped, key)


def test_files_that_are_not_there(pem, tmp_path):
    """The one that is missing is named, not both."""
    missing = f"{tmp_path}/missing.pem"
    assert refused(missing, pem[1]) == f"cannot read the certificate {missing!r}: No such file or directory"
    assert refused(pem[0], missing) == f"cannot read the private key {missing!r}: No such file or directory"
    assert "Not a directory" in refused(f"{pem[0]}/x", pem[1])


def test_files_that_are_none(pem, tmp_path):
    """A directory, a device that never ends, a pipe nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    for odd in (tmp_path, "/dev/zero", tmp_path / "pipe"):
        assert f"the certificate {str(odd)!r} is no regular file" in refused(odd, pem[1])
        assert f"the private key {str(odd)!r} is no regular file" in refused(pem[0], odd)


def test_files_that_hold_something_else(pem, files):
    """Empty, binary, DER, the other one of the two, far too large: said of the file that is meant."""
    cert, key = map(str, pem)
    der = files("der", ssl.PEM_cert_to_DER_cert(pem[0].read_text()))
    large = files("large", b"\0" * (1 << 20) + pem[0].read_bytes())
    for odd in (files("empty", ""), files("binary", os.urandom(5000)), der, key, large):
        assert refused(odd, key) == f"{odd!r} holds no certificate in PEM form"
    for odd in (files("empty", ""), files("text", "secret\n"), cert):
        assert refused(cert, odd) == f"{odd!r} holds no private key in PEM form; give the key's file with --keyfile"
    assert refused(cert) == f"{cert!r} holds no private key in PEM form; give the key's file with --keyfile"


def test_damaged_files(pem, files):
    """Cut off, or with a wrong character: named with what OpenSSL makes of it."""
    cert, key = (path.read_text() for path in pem)
    half = files("half", cert[: len(cert) // 2])
    assert f"cannot use the certificate {half!r}" in refused(half, pem[1])
    wrong = files("wrong", cert[:200] + "!!!!" + cert[204:])
    assert f"cannot use the certificate {wrong!r}" in refused(wrong, pem[1])
    broken = files("broken", key[:60] + "AAAA" + key[64:])
    assert f"with the key {broken!r}" in refused(pem[0], broken)


def test_a_key_of_another_certificate(pem, tmp_path):
    """Both are good, but not together."""
    _, other = make_certificate(tmp_path, "other")
    said = refused(pem[0], other)
    assert said.startswith(
        f"cannot use the certificate {str(pem[0])!r} with the key {str(other)!r}: the key does not"
    )


def test_a_key_that_is_too_short(tmp_path):
    """What no client of today accepts is not served."""
    cert, key = tmp_path / "short.pem", tmp_path / "short.key"
    openssl(
        *("req", "-x509", "-newkey", "rsa:1024", "-nodes", "-days", "2", "-subj", "/CN=short"),
        *("-keyout", key, "-out", cert),
    )
    assert "the key is too short to be safe" in refused(cert, key)


@pytest.mark.parametrize("form", ["pkcs8", "traditional"])
def test_an_encrypted_key(pem, tmp_path, form):
    """Refused with what to do; the passphrase is not asked for."""
    locked = tmp_path / "locked.key"
    more = ["-traditional"] if form == "traditional" else []
    openssl("pkey", "-in", pem[1], "-out", locked, "-aes256", "-passout", "pass:secret", *more)
    said = refused(pem[0], locked)
    assert f"the private key in {str(locked)!r} is encrypted" in said
    assert "openssl pkey -in OLD -out NEW" in said


def test_files_without_the_right_to_read_them(pem, tmp_path):
    """The kernel's reason and the file; root may read everything, so this is a child of nobody."""
    secret = tmp_path / "secret.key"
    secret.write_bytes(pem[1].read_bytes())
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            for folder in (tmp_path, *tmp_path.parents, pem[0].parent, *pem[0].parents):
                if not folder.stat().st_mode & 1 and len(folder.parts) > 2:
                    folder.chmod(folder.stat().st_mode | 0o011)
            os.setuid(65534)
            try:
                load(str(pem[0]), str(secret))
                os.write(writer, b"loaded")
            except ConfigError as error:
                os.write(writer, str(error).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        said = os.read(reader, 4096).decode()
        os.close(reader)
        os.close(writer)
    else:
        said = refused(pem[0], secret)
    assert said == f"cannot read the private key {str(secret)!r}: Permission denied"
