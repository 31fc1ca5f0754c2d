"""Every token that somebody else could make is refused, each kind by a test of its own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from api.accounts.tokens import CLOCK_SKEW_S, KEYS_RELOAD_S, TOKEN_LENGTH_MAX, AccessTokens, InvalidToken
from persistence.identifiers import new_id
from persistence.repositories.keys import SigningKey
from persistence.unit_of_work import UnitOfWork

NOW = 1_800_000_000
TTL_S = 900


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class KeyTable:
    """The table of signing keys, as a unit of work that has nothing else."""

    def __init__(self) -> None:
        self.keys: list[SigningKey] = []
        self.reads = 0

    @property
    def signing_keys(self) -> KeyTable:
        return self

    async def __aenter__(self) -> KeyTable:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    async def lock(self) -> None:
        return None

    async def all(self) -> list[SigningKey]:
        self.reads += 1
        return sorted(self.keys, key=lambda key: (key.created_at, key.kid), reverse=True)

    async def add(self, *, kid: str, public_pem: str, private_pem: str, created_at: datetime) -> None:
        self.keys.append(
            SigningKey(kid=kid, public_pem=public_pem, private_pem=private_pem, created_at=created_at, retired_at=None)
        )

    async def retire(self, *, but: str, at: datetime) -> None:
        self.keys = [
            key
            if key.kid == but or key.retired_at
            else SigningKey(
                kid=key.kid,
                public_pem=key.public_pem,
                private_pem=key.private_pem,
                created_at=key.created_at,
                retired_at=at,
            )
            for key in self.keys
        ]

    async def remove(self, *, retired_before: datetime) -> None:
        self.keys = [key for key in self.keys if key.retired_at is None or key.retired_at >= retired_before]


class Clinic:
    """Access tokens over a table of keys, with a clock that is moved by hand; jose's clock is moved along."""

    def __init__(self, table: KeyTable) -> None:
        self.table = table
        self.now = float(NOW)
        self.tokens = AccessTokens(
            issuer="zapis",
            audience="clinic",
            ttl_s=TTL_S,
            unit_of_work=lambda: cast(UnitOfWork, table),
            clock=lambda: self.now,
        )
        self.user_id, self.session_id = new_id(), new_id()

    async def token(self) -> str:
        return await self.tokens.sign(user_id=self.user_id, session_id=self.session_id, session_generation=3)

    @property
    def kid(self) -> str:
        return self.table.keys[-1].kid

    @property
    def private_key(self) -> ec.EllipticCurvePrivateKey:
        loaded = serialization.load_pem_private_key(self.table.keys[-1].private_pem.encode(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        return loaded

    def header(self, **changed: Any) -> dict[str, Any]:
        return {"alg": "ES256", "typ": "at+jwt", "kid": self.kid} | changed

    def claims(self, **changed: Any) -> dict[str, Any]:
        now = int(self.now)
        return {
            "iss": "zapis",
            "aud": "clinic",
            "sub": self.user_id,
            "sid": self.session_id,
            "gen": 3,
            "iat": now,
            "nbf": now,
            "exp": now + TTL_S,
            "jti": new_id(),
        } | changed

    def signed(self, header: dict[str, Any], claims: Any) -> str:
        """A token with any header and claims, signed with our own key."""
        signing_input = f"{encoded(header)}.{encoded(claims)}"
        return f"{signing_input}.{base64url(es256(self.private_key, signing_input))}"


@pytest.fixture
async def clinic(monkeypatch: pytest.MonkeyPatch) -> Clinic:
    made = Clinic(KeyTable())
    await made.tokens.open()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clock:
            return cls.fromtimestamp(made.now, tz)

    monkeypatch.setattr("jose.jwt.datetime", Clock)
    return made


@contextmanager
def refused() -> Iterator[None]:
    with pytest.raises(InvalidToken):
        yield


async def test_a_token_of_ours_is_good_until_it_expires(clinic: Clinic) -> None:
    token = await clinic.token()
    claims = await clinic.tokens.verify(token)
    assert (claims.user_id, claims.session_id, claims.session_generation) == (clinic.user_id, clinic.session_id, 3)
    clinic.now += TTL_S - 1
    await clinic.tokens.verify(token)
    clinic.now += 1
    with refused():
        await clinic.tokens.verify(token)


async def test_what_the_tests_sign_themselves_is_good_when_it_is_as_ours(clinic: Clinic) -> None:
    await clinic.tokens.verify(clinic.signed(clinic.header(), clinic.claims()))


async def test_an_expired_token_is_refused_where_it_was_never_seen(clinic: Clinic) -> None:
    token = await clinic.token()
    clinic.now += TTL_S
    with refused():
        await clinic.tokens.verify(token)


async def test_algorithm_none_is_refused(clinic: Clinic) -> None:
    for algorithm in ("none", "None", "NONE", "nOnE", ""):
        unsigned = f"{encoded(clinic.header(alg=algorithm))}.{encoded(clinic.claims())}"
        for signature in ("", base64url(bytes(64))):
            with refused():
                await clinic.tokens.verify(f"{unsigned}.{signature}")


async def test_hs256_with_our_public_key_as_its_secret_is_refused(clinic: Clinic) -> None:
    for secret in (clinic.table.keys[0].public_pem.encode(), clinic.table.keys[0].public_pem.strip().encode()):
        signing_input = f"{encoded(clinic.header(alg='HS256'))}.{encoded(clinic.claims())}"
        signature = hmac.digest(secret, signing_input.encode(), hashlib.sha256)
        with refused():
            await clinic.tokens.verify(f"{signing_input}.{base64url(signature)}")
        padded = base64url(signature + bytes(32))
        with refused():
            await clinic.tokens.verify(f"{signing_input}.{padded}")


@pytest.mark.parametrize(
    "algorithm", ["ES384", "ES512", "RS256", "PS256", "HS512", "es256", "EdDSA", None, 1, ["ES256"]]
)
async def test_any_other_algorithm_is_refused(clinic: Clinic, algorithm: object) -> None:
    with refused():
        await clinic.tokens.verify(clinic.signed(clinic.header(alg=algorithm), clinic.claims()))


async def test_a_key_of_somebody_elses_is_refused(clinic: Clinic) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    signing_input = f"{encoded(clinic.header())}.{encoded(clinic.claims())}"
    with refused():
        await clinic.tokens.verify(f"{signing_input}.{base64url(es256(stranger, signing_input))}")


async def test_a_key_id_that_is_not_known_is_refused(clinic: Clinic) -> None:
    for kid in (new_id(), "", "../../dev/null", "' OR 1=1 --", None, 7, {"a": 1}):
        with refused():
            await clinic.tokens.verify(clinic.signed(clinic.header(kid=kid), clinic.claims()))
    header = clinic.header()
    del header["kid"]
    with refused():
        await clinic.tokens.verify(clinic.signed(header, clinic.claims()))


async def test_unknown_key_ids_do_not_make_us_read_the_keys_each_time(clinic: Clinic) -> None:
    reads = clinic.table.reads
    for _ in range(20):
        with refused():
            await clinic.tokens.verify(clinic.signed(clinic.header(kid=new_id()), clinic.claims()))
    assert clinic.table.reads <= reads + 1


def _foreign_jwk() -> dict[str, str]:
    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": base64url(numbers.x.to_bytes(32, "big")),
        "y": base64url(numbers.y.to_bytes(32, "big")),
    }


@pytest.mark.parametrize(
    "extra",
    [
        {"crit": ["exp"]},
        {"crit": ["b64"], "b64": False},
        {"crit": []},
        {"b64": False},
        {"jwk": _foreign_jwk()},
        {"jku": "https://evil.example/jwks.json"},
        {"x5u": "https://evil.example/cert.pem"},
        {"x5c": ["MIIB"]},
        {"x5t": "AAAA"},
        {"zip": "DEF"},
        {"enc": "A256GCM"},
        {"cty": "JWT"},
    ],
    ids=lambda extra: "-".join(extra),
)
async def test_header_fields_that_name_keys_or_rules_of_the_senders_are_refused(
    clinic: Clinic, extra: dict[str, Any]
) -> None:
    with refused():
        await clinic.tokens.verify(clinic.signed(clinic.header(**extra), clinic.claims()))


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+JWT ", "application/at+jwt", "", None, 5])
async def test_another_type_is_refused(clinic: Clinic, kind: object) -> None:
    with refused():
        await clinic.tokens.verify(clinic.signed(clinic.header(typ=kind), clinic.claims()))
    header = clinic.header()
    del header["typ"]
    with refused():
        await clinic.tokens.verify(clinic.signed(header, clinic.claims()))


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "sid", "gen", "iat", "nbf", "exp", "jti"])
async def test_a_claim_that_is_missing_is_refused(clinic: Clinic, claim: str) -> None:
    claims = clinic.claims()
    del claims[claim]
    with refused():
        await clinic.tokens.verify(clinic.signed(clinic.header(), claims))


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "evil"},
        {"iss": ["zapis"]},
        {"iss": None},
        {"aud": "shop"},
        {"aud": ["clinic", "shop"]},
        {"aud": ["clinic"]},
        {"aud": None},
        {"aud": {}},
        {"sub": "admin"},
        {"sub": ""},
        {"sub": None},
        {"sub": 1},
        {"sid": "x"},
        {"gen": "3"},
        {"gen": True},
        {"gen": None},
        {"jti": 1},
        {"jti": None},
        {"exp": str(NOW + TTL_S)},
        {"exp": NOW + 0.5},
        {"exp": True},
        {"exp": None},
        {"exp": 10**400},
        {"exp": NOW},
        {"exp": -1},
        {"exp": []},
        {"iat": NOW + CLOCK_SKEW_S + 60},
        {"iat": str(NOW)},
        {"iat": None},
        {"iat": True},
        {"nbf": NOW + CLOCK_SKEW_S + 60},
        {"nbf": str(NOW)},
        {"nbf": None},
    ],
    ids=str,
)
async def test_a_claim_of_another_value_or_form_is_refused(clinic: Clinic, changed: dict[str, Any]) -> None:
    with refused():
        await clinic.tokens.verify(clinic.signed(clinic.header(), clinic.claims(**changed)))


@pytest.mark.parametrize("claims", [[], "sub", 1, None, True])
async def test_claims_that_are_no_object_are_refused(clinic: Clinic, claims: object) -> None:
    with refused():
        await clinic.tokens.verify(clinic.signed(clinic.header(), claims))


async def test_an_encrypted_token_is_refused(clinic: Clinic) -> None:
    with refused():
        await clinic.tokens.verify(".".join([encoded({"alg": "dir", "enc": "A256GCM"}), "", "AAAA", "AAAA", "AAAA"]))


async def test_json_serialisation_is_refused(clinic: Clinic) -> None:
    header, claims, signature = (await clinic.token()).split(".")
    flattened = json.dumps({"protected": header, "payload": claims, "signature": signature})
    with refused():
        await clinic.tokens.verify(flattened)


async def test_a_token_that_is_too_long_is_refused(clinic: Clinic) -> None:
    token = clinic.signed(clinic.header(), clinic.claims(padding="x" * TOKEN_LENGTH_MAX))
    with refused():
        await clinic.tokens.verify(token)


async def test_a_token_changed_anywhere_is_refused(clinic: Clinic) -> None:
    token = await clinic.token()
    for position in range(len(token)):
        other = "A" if token[position] != "A" else "B"
        with refused():
            await clinic.tokens.verify(token[:position] + other + token[position + 1 :])


async def test_encodings_that_are_not_canonical_are_refused(clinic: Clinic) -> None:
    token = await clinic.token()
    header, claims, signature = token.split(".")
    for other in (
        f"{header}.{claims}.{signature}=",
        f"{header}=.{claims}.{signature}",
        f"{header}.{claims}.{signature}\n",
        f" {token}",
        f"{header}.{claims}\n.{signature}",
        f"{header}.{claims}.{signature[:-1]}" + ("R" if signature[-1] != "R" else "S"),
        f"{header}..{claims}.{signature}",
        f"{header}.{claims}",
        token + ".",
        "",
        ".",
        "..",
        "\ud800",
        "\x00",
        "é.é.é",
    ):
        with refused():
            await clinic.tokens.verify(other)


async def test_a_signature_in_the_other_form_is_refused(clinic: Clinic) -> None:
    signing_input = f"{encoded(clinic.header())}.{encoded(clinic.claims())}"
    der = clinic.private_key.sign(signing_input.encode(), ec.ECDSA(hashes.SHA256()))
    for signature in (der, bytes(64), b"\xff" * 64, b""):
        with refused():
            await clinic.tokens.verify(f"{signing_input}.{base64url(signature)}")


async def test_an_rsa_token_is_refused(clinic: Clinic) -> None:
    key = rsa.generate_private_key(65537, 2048)
    assert key.key_size == 2048
    signing_input = f"{encoded(clinic.header(alg='RS256'))}.{encoded(clinic.claims())}"
    with refused():
        await clinic.tokens.verify(f"{signing_input}.{base64url(bytes(256))}")


async def test_a_good_token_is_verified_once_and_a_bad_one_never_remembered(clinic: Clinic) -> None:
    token = await clinic.token()
    assert clinic.tokens.remembered(token) is None
    claims = await clinic.tokens.verify(token)
    assert clinic.tokens.remembered(token) is claims
    with refused():
        await clinic.tokens.verify(token[:-4] + "AAAA")
    assert clinic.tokens.remembered(token[:-4] + "AAAA") is None
    clinic.now += TTL_S
    assert clinic.tokens.remembered(token) is None


async def test_after_a_rotation_old_tokens_are_good_and_new_ones_signed_by_the_new_key(clinic: Clinic) -> None:
    before = await clinic.token()
    old_kid = clinic.kid
    clinic.now += 1
    await clinic.tokens.rotate()
    after = await clinic.token()
    assert header_of(before)["kid"] == old_kid != header_of(after)["kid"]
    assert {key["kid"] for key in clinic.tokens.jwks()["keys"]} == {old_kid, header_of(after)["kid"]}
    for token in (before, after):
        await clinic.tokens.verify(token)


async def test_another_process_verifies_and_later_signs_with_the_new_key(clinic: Clinic) -> None:
    other = Clinic(clinic.table)
    await other.tokens.open()
    clinic.now += 10
    other.now = clinic.now
    await clinic.tokens.rotate()
    await other.tokens.verify(await clinic.token())
    other.now = clinic.now = clinic.now + KEYS_RELOAD_S + 1
    assert header_of(await other.token())["kid"] == header_of(await clinic.token())["kid"]


async def test_a_retired_key_is_refused_once_its_last_token_has_expired(clinic: Clinic) -> None:
    old_key, old_kid = clinic.private_key, clinic.kid
    clinic.now += 1
    await clinic.tokens.rotate()
    clinic.now += TTL_S + KEYS_RELOAD_S + CLOCK_SKEW_S + KEYS_RELOAD_S + 2
    await clinic.token()  # reads the keys again
    signing_input = f"{encoded(clinic.header(kid=old_kid))}.{encoded(clinic.claims())}"
    with refused():
        await clinic.tokens.verify(f"{signing_input}.{base64url(es256(old_key, signing_input))}")
    assert old_kid not in {key["kid"] for key in clinic.tokens.jwks()["keys"]}
    assert old_kid not in {key.kid for key in clinic.table.keys}, "nobody keeps it"


async def test_a_retired_key_is_kept_until_then(clinic: Clinic) -> None:
    token, old_kid = await clinic.token(), clinic.kid
    await clinic.tokens.rotate()
    await clinic.tokens.rotate()
    clinic.now += TTL_S - 1
    await clinic.token()  # reads the keys again
    await clinic.tokens.verify(token)
    assert len(clinic.table.keys) == 3
    newcomer = Clinic(clinic.table)
    newcomer.now = clinic.now
    await newcomer.tokens.open()
    assert (await newcomer.tokens.verify(token)).user_id == clinic.user_id
    assert old_kid in {key["kid"] for key in newcomer.tokens.jwks()["keys"]}


async def test_what_is_published_is_public(clinic: Clinic) -> None:
    (key,) = clinic.tokens.jwks()["keys"]
    assert key.keys() == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    numbers = clinic.private_key.public_key().public_numbers()
    assert key["x"] == base64url(numbers.x.to_bytes(32, "big"))
    assert key["y"] == base64url(numbers.y.to_bytes(32, "big"))


def encoded(value: Any) -> str:
    return base64url(json.dumps(value, separators=(",", ":")).encode())


def es256(key: ec.EllipticCurvePrivateKey, signing_input: str) -> bytes:
    r, s = decode_dss_signature(key.sign(signing_input.encode(), ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def header_of(token: str) -> dict[str, Any]:
    part = token.partition(".")[0]
    header: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return header


assert datetime.fromtimestamp(NOW, UTC).year > 2026, "a time that no real clock in the tests has yet reached"
