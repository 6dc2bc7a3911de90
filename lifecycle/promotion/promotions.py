"""Promotion of a validated version to champion, and the way back."""

import getpass
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mirrorspark.clear_error import ClearError
from mirrorspark.lifecycle.gate import FORMAT_VERSION, Validation
from mirrorspark.lifecycle.promotion.registry import Registry
from mirrorspark.storage import clean

CHAMPION = "champion"
PREVIOUS = "previous"
AUDIT_PREFIX = "promotion."

# MLflow takes 5,000 characters for a tag; a reason may be long.
_REASON_CHARACTERS = 1000
_SHOWN_FINDINGS = 5


class PromotionRefusedError(ClearError, RuntimeError):
    """The evidence does not permit the promotion, or is not of the registered files."""


class PromotionConflictError(ClearError, RuntimeError):
    """The champion is not the one that the candidate was compared with: another promotion came first."""


@dataclass(frozen=True)
class Evidence:
    """Facts of a validation that a promotion needs.

    Attributes:
        name: Registered model of the candidate.
        version: Its version.
        digest: Digest of its files when it was validated.
        champion: The champion that it was compared with, in words; None without one.
        champion_digest: Digest of the champion's files.
        failed: The findings that block a promotion, in words.
        at: Time of the validation.
        sha256: Digest of the whole document.
    """

    name: str
    version: str
    digest: str
    champion: str | None
    champion_digest: str | None
    failed: tuple[str, ...]
    at: str
    sha256: str

    @classmethod
    def of(cls, validation: Validation) -> Self:
        """Return the evidence of a validation."""
        return cls._read(validation.to_json())

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read the evidence that :meth:`lifecycle.gate.validation.Validation.save` has written.

        Raises:
            OSError: The file cannot be read.
            PromotionRefusedError: It is not a validation, or one of another version.
        """
        try:
            return cls._read(Path(file).read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PromotionRefusedError(
                f"{file} is not a validation ({error}); give the validation.json of one"
            ) from error

    @classmethod
    def _read(cls, text: str) -> Self:
        document = json.loads(text)
        if (version := document["format_version"]) != FORMAT_VERSION:
            raise ValueError(f"its format is {version}, this program reads {FORMAT_VERSION}")
        failed = tuple(one["words"] for one in document["findings"] if one["outcome"] == "failed")
        if document["passed"] is not (not failed):
            raise ValueError("its verdict is not that of its findings")
        candidate, champion = document["candidate"], document["champion"]
        return cls(
            name=candidate["name"],
            version=candidate["version"],
            digest=candidate["digest"],
            champion=champion and f"{champion['name']}/{champion['version']}",
            champion_digest=champion and champion["digest"],
            failed=failed,
            at=document["at"],
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )


@dataclass(frozen=True)
class Promotion:
    """A move of the alias ``champion``.

    Attributes:
        name: Registered model.
        version: The champion from now on.
        previous: The champion before; None if there was none.
        is_new: False if the version was the champion already, and nothing was done.
    """

    name: str
    version: str
    previous: str | None
    is_new: bool = True


def promote(
    evidence: Evidence | Validation,
    registry: Registry,
    *,
    why: str,
    who: str | None = None,
    name: str | None = None,
    version: str | None = None,
) -> Promotion:
    """Make a validated version the champion, if it has passed and the champion is still the one it was compared with.

    Of several promotions at once one wins; the champion has changed for the others. The former champion gets
    the alias ``previous``. Who, when, why and by which evidence becomes a tag of the version. A promotion that was
    killed half-way is completed by the same call.

    Args:
        evidence: The validation, or the result of :meth:`Evidence.load`.
        registry: Where the versions are.
        why: The reason, for the audit trail.
        who: Name of the promoter; by default the user of this process.
        name: Registered model, if the candidate was validated by its folder.
        version: Its version, likewise.

    Raises:
        PromotionRefusedError: A gate has failed, or the registered files are not those that were validated.
        PromotionConflictError: The champion has changed since the validation.
        RegistryError: There is no such version, or another process holds the lock.
    """
    evidence = Evidence.of(evidence) if isinstance(evidence, Validation) else evidence
    name, version = name or evidence.name, version or evidence.version
    if evidence.failed:
        more = len(evidence.failed) - _SHOWN_FINDINGS
        shown = "; ".join(evidence.failed[:_SHOWN_FINDINGS]) + (f"; and {more} more" if more > 0 else "")
        raise PromotionRefusedError(f"{name}/{version} stays out of production: {shown}")
    if registry.digest(name, version) != evidence.digest:
        raise PromotionRefusedError(f"the files of {name}/{version} are not those that were validated; validate again")
    with registry.changing(name):
        champion = registry.alias(name, CHAMPION)
        if champion == version:
            return Promotion(name, version, registry.alias(name, PREVIOUS), is_new=False)
        if (None if champion is None else registry.digest(name, champion)) != evidence.champion_digest:
            raise PromotionConflictError(
                f"the champion of '{name}' is {'not there' if champion is None else f'version {champion}'}, and "
                f"{name}/{version} was compared with {evidence.champion or 'none'}; validate it again"
            )
        seen = {key: value for key, value in asdict(evidence).items() if key != "failed"}
        entry = {"action": "promote", "from": champion, "why": why, "evidence": seen}
        _note(registry, name, version, champion, who, entry)
        # The champion last: until then nothing has changed for those who score.
        if champion is not None:
            registry.set_alias(name, PREVIOUS, champion)
        registry.set_alias(name, CHAMPION, version)
    return Promotion(name, version, champion)


def rollback(name: str, registry: Registry, *, why: str, who: str | None = None) -> Promotion:
    """Make the previous champion the champion again. A rollback that was killed half-way is completed by the same call.

    Args:
        name: Registered model.
        registry: Where the versions are.
        why: The reason, for the audit trail.
        who: Name of the caller; by default the user of this process.

    Raises:
        PromotionRefusedError: There is no previous champion.
        RegistryError: There is no such model, or another process holds the lock.
    """
    with registry.changing(name):
        champion, previous = registry.alias(name, CHAMPION), registry.alias(name, PREVIOUS)
        if previous is not None and previous == champion and _was_rolled_back_to(registry, name, champion):
            # A former call has been killed before its last step.
            registry.delete_alias(name, PREVIOUS)
            return Promotion(name, champion, None, is_new=False)
        if previous is None or previous == champion:
            raise PromotionRefusedError(
                f"'{name}' has no previous champion to go back to; set the alias {CHAMPION} to a version yourself"
            )
        _note(registry, name, previous, champion, who, {"action": "rollback", "from": champion, "why": why})
        registry.set_alias(name, CHAMPION, previous)
        # Going back twice would bring the bad one into production again.
        registry.delete_alias(name, PREVIOUS)
    return Promotion(name, previous, champion)


def audit_trail(name: str, version: str, registry: Registry) -> list[Mapping[str, Any]]:
    """Return the actions on a version, the earliest first, each with ``at``, ``action``, ``who`` and ``why``.

    Raises:
        RegistryError: There is no such version.
    """
    return list(_entries(name, version, registry).values())


def _entries(name: str, version: str, registry: Registry) -> dict[str, Mapping[str, Any]]:
    """Return the audit trail of a version by its tags, which begin with the time."""
    tags = registry.tags(name, version)
    return {key: json.loads(tags[key]) for key in sorted(tags) if key.startswith(AUDIT_PREFIX)}


def _was_rolled_back_to(registry: Registry, name: str, version: str) -> bool:
    trail = audit_trail(name, version, registry)
    return bool(trail) and trail[-1]["action"] == "rollback"


def _note(
    registry: Registry, name: str, version: str, champion: str | None, who: str | None, entry: Mapping[str, Any]
) -> None:
    """Note that a version takes the place of a champion, unless a call that was killed has noted it."""
    at = datetime.now(UTC)
    noted: dict[str, Any] = clean({"who": who or getpass.getuser(), **entry})
    noted["why"] = str(noted["why"])[:_REASON_CHARACTERS]
    own = _entries(name, version, registry)
    others = {} if champion is None else _entries(name, champion, registry)
    latest = own.get(max([*own, *others], default=""), {})
    # The last noted action of both versions has not been done: if it had been, and undone, that was noted later.
    if {key: value for key, value in latest.items() if key != "at"} == noted:
        return
    document = json.dumps({"at": at.isoformat(timespec="seconds"), **noted})
    registry.set_tag(name, version, f"{AUDIT_PREFIX}{at:%Y%m%dT%H%M%S.%fZ}", document)
