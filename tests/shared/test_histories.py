"""What is remembered of releases: how it is named, kept and written."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kreflex import PodSignal, Settings, Skip, World, rights
from kreflex.decisions import Remember
from kreflex.errors import OutageError, UnavailableError
from kreflex.histories import KEPT, Histories, History, Noted, digest, history_name, history_of, history_path
from kreflex.reflex import Arc, Result
from kreflex.reverts import RevertTemplate
from kreflex.settings import CoreSettings
from kreflex.views import JSON
from tests import made_up
from tests.shared.releases import HISTORY, a_history
from tests.values import CART_DEPLOYMENT, MINUTE, NOW, CannedApi, stamp

GOOD: JSON = {"hash": "7d4", "number": 1, "healthyAt": stamp(NOW - 10 * MINUTE), "healthyUntil": stamp(NOW)}
OWNER = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "cart", "uid": "uid-cart"}


async def remembers(signal: PodSignal, world: World, settings: Settings) -> Remember | Skip:
    return Skip("it does not exist")


async def reverts(signal: PodSignal, world: World, settings: Settings) -> RevertTemplate | Skip:
    return Skip("it does not exist")


class Api(CannedApi):
    """Keeps what is written, and answers with it."""

    def __init__(self, objects: dict[str, JSON] | None = None) -> None:
        super().__init__(objects)
        self.written: list[tuple[str, str, JSON | None]] = []

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        if method == "GET":
            return await super().send(method, path, body, **options)
        self.written.append((method, path, body))
        return {}


def test_a_history_is_called_after_the_kind_and_the_name_of_its_workload() -> None:
    assert history_name(CART_DEPLOYMENT) == "deployment-cart"
    long = replace(CART_DEPLOYMENT, name="a" * 253)
    assert history_name(long) == f"deployment-{'a' * 189}-de1f72e4"
    assert history_name(long) != history_name(replace(long, name="a" * 252))
    assert history_path(CART_DEPLOYMENT) == HISTORY


async def test_it_is_read_by_the_uid_of_its_workload() -> None:
    reader, _ = CannedApi({HISTORY: a_history(GOOD)}).pair()
    good = Noted(hash="7d4", number=1, healthy_at=NOW - 10 * MINUTE, healthy_until=NOW)
    assert await history_of(CART_DEPLOYMENT, reader) == History(CART_DEPLOYMENT, "5", (good,))
    assert await history_of(replace(CART_DEPLOYMENT, uid="new"), reader) == History(
        replace(CART_DEPLOYMENT, uid="new"), "5"
    )
    assert await history_of(replace(CART_DEPLOYMENT, name="new"), reader) == History(
        replace(CART_DEPLOYMENT, name="new")
    )


async def test_fields_of_a_newer_version_are_left_aside_and_what_makes_no_sense_is_said() -> None:
    reader, _ = CannedApi({HISTORY: a_history({**GOOD, "colour": "red"})}).pair()
    assert [one.hash for one in (await history_of(CART_DEPLOYMENT, reader)).revisions] == ["7d4"]
    reader, _ = CannedApi({HISTORY: a_history({"number": 1})}).pair()
    with pytest.raises(UnavailableError, match="ReleaseHistory shop/deployment-cart can't be read; mend or delete it"):
        await history_of(CART_DEPLOYMENT, reader)


async def test_the_first_word_makes_the_history_and_the_next_goes_into_what_was_read() -> None:
    api = Api()
    await Histories(*api.pair()).note(CART_DEPLOYMENT, Noted(hash="7d4", number=1, images=("cart:1",)))
    workload = {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "cart", "uid": "uid-cart"}
    first = {"hash": "7d4", "number": 1, "template": "", "images": ["cart:1"], "source": "", "bad": ""}
    assert api.written == [
        (
            "POST",
            HISTORY.rpartition("/")[0],
            {
                "apiVersion": "kreflex.dev/v1alpha1",
                "kind": "ReleaseHistory",
                "metadata": {"name": "deployment-cart", "namespace": "shop", "ownerReferences": [OWNER]},
                "spec": {"workload": workload, "revisions": [first]},
            },
        )
    ]
    api = Api({HISTORY: a_history(first)})
    await Histories(*api.pair()).note(CART_DEPLOYMENT, Noted(hash="9f2", number=2))
    second = {"hash": "9f2", "number": 2, "template": "", "images": [], "source": "", "bad": ""}
    meta = {"ownerReferences": [OWNER], "resourceVersion": "5"}
    assert api.written == [
        ("PATCH", HISTORY, {"metadata": meta, "spec": {"workload": workload, "revisions": [second, first]}})
    ]


async def test_what_is_known_is_not_written_again() -> None:
    api = Api({HISTORY: a_history({**GOOD, "bad": "r-1"})})
    told = Noted(hash="7d4", number=1, healthy_at=NOW - 10 * MINUTE, healthy_until=NOW)
    await Histories(*api.pair()).note(CART_DEPLOYMENT, told)
    await Histories(*api.pair()).condemn(CART_DEPLOYMENT, told, "r-1")
    await Histories(*api.pair()).condemn(CART_DEPLOYMENT, told, "r-2")
    assert api.written == []


async def test_a_version_that_was_rolled_back_from_stays_so_however_well_it_goes() -> None:
    api = Api({HISTORY: a_history({"hash": "7d4", "number": 1, "bad": "r-1"})})
    await Histories(*api.pair()).note(
        CART_DEPLOYMENT, Noted(hash="7d4", number=3, healthy_at=NOW - MINUTE, healthy_until=NOW)
    )
    ((_, _, body),) = api.written
    assert body is not None
    (told,) = body["spec"]["revisions"]
    assert (told["bad"], told["number"], told["healthyAt"]) == ("r-1", 3, "2026-05-01T11:59:00.000Z")


async def test_what_was_known_of_a_version_is_kept_when_it_is_rolled_back_from() -> None:
    api = Api({HISTORY: a_history({**GOOD, "source": "main@1"})})
    await Histories(*api.pair()).condemn(CART_DEPLOYMENT, Noted(hash="7d4", number=1), "r-1")
    ((_, _, body),) = api.written
    assert body is not None
    (told,) = body["spec"]["revisions"]
    assert (told["bad"], told["source"], told["healthyUntil"]) == ("r-1", "main@1", "2026-05-01T12:00:00.000Z")


def test_of_too_many_versions_those_are_forgotten_that_were_noted_first() -> None:
    history = History(CART_DEPLOYMENT)
    for number in range(KEPT + 2):
        history = replace(history, revisions=history.with_(Noted(hash=f"h-{number}", number=number)))
    assert [one.number for one in history.revisions] == [11, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    again = history.with_(Noted(hash="h-5", number=12))
    assert [one.number for one in again] == [12, 11, 10, 9, 8, 7, 6, 4, 3, 2]


def test_a_version_is_proven_by_how_long_it_was_seen_well() -> None:
    told = Noted(hash="a", number=1, healthy_at=NOW - 5 * MINUTE, healthy_until=NOW)
    assert told.proves(5 * MINUTE)
    assert not told.proves(5 * MINUTE + timedelta(seconds=1))
    assert not Noted(hash="a", number=1, healthy_at=NOW).proves(timedelta())


def test_a_template_is_named_by_what_it_says_not_by_the_order_in_which_it_says_it() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1}) == "f85d0f4856723d93"
    assert digest({"a": 1}) != digest({"a": 2})


def writes(decide: Any) -> set[str]:
    allowed = rights.rights_of(made_up.reflex(decide)).rest
    return {rule.verb for rule in allowed if rule.resource == "releasehistories"}


def test_whose_signature_remembers_may_write_histories_and_no_other() -> None:
    assert writes(remembers) == writes(reverts) == {"get", "create", "patch"}
    assert writes(made_up.evicts) == set()


async def notes(signal: PodSignal, world: World, settings: Settings) -> Remember | Skip:
    return Remember("it is well", CART_DEPLOYMENT, Noted(hash="7d4", number=1))


@pytest.mark.parametrize(
    ("causes", "because"),
    [((), "it is well"), (("NamespaceTerminating",), "its namespace is being deleted")],
)
async def test_what_is_remembered_is_skipped_by_the_arc_and_a_namespace_that_goes_takes_it_along(
    causes: tuple[str, ...], because: str
) -> None:
    class Going(Api):
        async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
            if method == "POST" and causes:
                raise OutageError(f"{path} is forbidden", 403, "Forbidden", causes)
            return await super().send(method, path, body, **options)

    api = Going()
    arc = Arc(made_up.reflex(notes), CoreSettings(), api)
    assert await arc.handle(PodSignal("shop", "cart-1")) == Result("pod shop/cart-1", "skipped", because)
    assert [path for _, path, _ in api.written] == ([] if causes else [HISTORY.rpartition("/")[0]])
